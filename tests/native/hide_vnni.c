/* Makes a process believe that its processor has neither VNNI nor AMX, so that the int8 kernels which saturate are used.
 *
 * LD_PRELOAD=./hide_vnni.so program
 *
 * arch_prctl(ARCH_SET_CPUID, 0) makes CPUID a fault for the thread and for those that it starts; the handler answers it
 * with the bits of these instruction sets cleared. With HIDE_AVX512 in the environment AVX-512 is hidden as well. Linux
 * on x86-64 with CPUID faulting (flag cpuid_fault) alone; elsewhere a line on stderr, and nothing is changed.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef ARCH_SET_CPUID
#define ARCH_SET_CPUID 0x1012
#endif

typedef int (*sigaction_function)(int, const struct sigaction *, struct sigaction *);

static sigaction_function real_sigaction;
static struct sigaction others; /* the handler that somebody else wants for SIGSEGV: Paddle does */
static int hide_avx512;

static long cpuid_allowed(unsigned long allowed) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, allowed); }

static void clear(uint32_t leaf, uint32_t sub, uint32_t *eax, uint32_t *ebx, uint32_t *ecx, uint32_t *edx) {
  if (leaf == 7 && sub == 0) {
    *ecx &= ~(1u << 11);                                /* AVX512_VNNI */
    *edx &= ~((1u << 22) | (1u << 24) | (1u << 25));    /* AMX_BF16, AMX_TILE, AMX_INT8 */
    if (hide_avx512) {
      *ebx &= ~((1u << 16) | (1u << 17) | (1u << 21) | (1u << 28) | (1u << 30) | (1u << 31));
      *ecx &= ~((1u << 1) | (1u << 6) | (1u << 12) | (1u << 14));
      *edx &= ~(1u << 23);
    }
  }
  if (leaf == 7 && sub == 1) {
    *eax &= ~((1u << 4) | (1u << 5) | (1u << 21));      /* AVX_VNNI, AVX512_BF16, AMX_FP16 */
    *edx &= ~((1u << 4) | (1u << 10));                  /* AVX_VNNI_INT8, AVX_VNNI_INT16 */
  }
}

static void on_fault(int number, siginfo_t *info, void *context) {
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const unsigned char *code = (const unsigned char *)registers[REG_RIP];
  if (code[0] == 0x0f && code[1] == 0xa2) {
    uint32_t leaf = (uint32_t)registers[REG_RAX], sub = (uint32_t)registers[REG_RCX], a, b, c, d;
    cpuid_allowed(1);
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(sub));
    cpuid_allowed(0);
    clear(leaf, sub, &a, &b, &c, &d);
    registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
    return;
  }
  if (others.sa_flags & SA_SIGINFO && others.sa_sigaction) {
    others.sa_sigaction(number, info, context);
    return;
  }
  signal(SIGSEGV, SIG_DFL);
}

int sigaction(int number, const struct sigaction *wanted, struct sigaction *before) {
  if (!real_sigaction) real_sigaction = (sigaction_function)dlsym(RTLD_NEXT, "sigaction");
  if (number != SIGSEGV) return real_sigaction(number, wanted, before);
  if (before) *before = others;
  if (wanted) others = *wanted;
  return 0;
}

__attribute__((constructor)) static void hide(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  hide_avx512 = getenv("HIDE_AVX512") != NULL;
  real_sigaction = (sigaction_function)dlsym(RTLD_NEXT, "sigaction");
  real_sigaction(SIGSEGV, &action, NULL);
  if (cpuid_allowed(0) != 0) perror("hide_vnni: arch_prctl(ARCH_SET_CPUID)");
}

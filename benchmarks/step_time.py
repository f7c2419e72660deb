"""QAT step against float distillation step, both fullquant's: time, ratio, peak memory, and the limit of physics.

python benchmarks/step_time.py
python benchmarks/step_time.py --model efficientnet_lite0_imagenet --batch 32 --json out/efficientnet.json
"""

from __future__ import annotations

import argparse

from alternate import Variant, alternate
from limits import limits
from models import KNOWN, Case, case, size
from results import Report, add_common, ratio

# The networks and batches of docs/performance.md.
_DEFAULT = (
    ("mobilenetv3_large", 16),
    ("efficientnet_lite0_imagenet", 16),
    ("efficientnet_lite0_imagenet", 32),
    ("mobilenetv3_small_ocr_cls", 32),
)


def our_variants(chosen: Case) -> list[Variant]:
    """Our float distillation step and our QAT step."""
    return [
        Variant(f"fullquant {variant}", "ours.py", ["--variant", variant, *chosen.arguments])
        for variant in ("float", "qat")
    ]


def measure(chosen: Case, report: Report, *, repeats: int, threads: int, warmup: int) -> None:
    """One network: both variants in turn, then what the machine could do at best."""
    found = alternate(our_variants(chosen), repeats=repeats, warmup=warmup, threads=threads)
    ratios = {"QAT step / float step": ratio(found, "fullquant qat", "fullquant float")}
    peaks = found["fullquant qat"].peak_mib, found["fullquant float"].peak_mib
    if peaks[0] and peaks[1]:
        ratios["peak memory, QAT / float"] = peaks[0] / peaks[1]
    bounds = limits(found["fullquant float"], threads)
    ratios["limit of QAT / float, each fake-quantize a pass of its own"] = bounds["least_ratio_separate"]
    ratios["limit of QAT / float, fused with pointwise operators"] = bounds["least_ratio_fused"]
    report.add(chosen.title, found, ratios, limits=bounds, batch=chosen.batch, threads=threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help=f"model folder or file, or one of {', '.join(KNOWN)} (all)")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--size", type=size, metavar="H[,W]")
    parser.add_argument("--warmup", type=int, default=3, help="first steps that are not counted (%(default)s)")
    add_common(parser, repeats=20)
    given = parser.parse_args()
    report = Report("step_time", given)
    chosen = [(given.model, given.batch)] if given.model else [(name, given.batch or batch) for name, batch in _DEFAULT]
    for name, batch in dict.fromkeys(chosen):
        measure(
            case(name, batch, given.size), report, repeats=given.repeats, threads=given.threads, warmup=given.warmup
        )


if __name__ == "__main__":
    main()

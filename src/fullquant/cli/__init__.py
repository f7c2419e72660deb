"""The commands: `fullquant`, and what run.py and eval.py do. Nothing heavy is imported before a command runs."""

from fullquant.cli.app import main
from fullquant.cli.scripts import eval_script, run_script

__all__ = ["eval_script", "main", "run_script"]

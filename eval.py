"""python eval.py --config_path configs/....yaml --model_dir output: see README.md, and `python eval.py --help`."""

from pathlib import Path

from fullquant.cli import eval_script

if __name__ == "__main__":
    eval_script(Path(__file__).parent / "configs" / "textline_demo.yaml")

"""python run.py --config_path configs/....yaml --save_dir output: see README.md, and `python run.py --help`."""

from pathlib import Path

from fullquant.cli import run_script

if __name__ == "__main__":
    run_script(Path(__file__).parent / "configs" / "textline_demo.yaml")

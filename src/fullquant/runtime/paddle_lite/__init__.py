"""Paddle Lite, which is an external program here: its wheels exist for CPython up to 3.10 only.

`converter` runs paddle_lite_opt, `program` reads what it made of a model, `audit` judges that, `forms` and `session`
run an int8 file in its x86 interpreter.
"""

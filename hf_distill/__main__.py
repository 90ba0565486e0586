"""`python -m hf_distill …`, the same as `hf-distill …`; what `accelerate launch -m hf_distill …` runs."""

from .cli import app

if __name__ == "__main__":
    app(prog_name="hf-distill")

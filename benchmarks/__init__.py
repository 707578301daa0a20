"""What is measured: the optimizers' steps beside other libraries'. See `README.md` in this folder."""

"""`python -m clipkit` is the `clipkit` command: what torchrun and srun start."""

from clipkit.cli.main import main

if __name__ == "__main__":
    main()

"`python -m ltx_nb` is the command `ltx-nb`; this is how `accelerate launch -m ltx_nb` starts it."

from ltx_nb.tools.cli import main

main()

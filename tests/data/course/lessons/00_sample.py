# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A sample lesson
# It is here for the tests of the tools: it has one of everything and needs no model.

# %%
import os

from IPython.display import HTML
from sample_exercises import exercise

from course_utils.measured import measured

# %% [markdown] tags=["exercise-only"]
# Fill in the function.

# %%
@exercise("00.double")
def double(x):
    """Twice x."""
    raise NotImplementedError

# %% tags=["solution-only"]
print("only in the solution:", double(3))

# %%
double(21)

# %%
measured("the answer", double(21), at_least=41, at_most=43, published="42 (quoted)")
measured("third", 1 / 3, unit="nats")

# %%
print(f"a float on stdout: {0.123456:.6f}", os.environ["COURSE_BARS"], os.environ.get("COURSE_REAL", "auto"))

# %%
HTML("<b>0.5000</b> nats<script>window.CircuitsVis</script>")

# %%
double(21)

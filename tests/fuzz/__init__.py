"""Random cases of what is computed, each against an oracle that imports nothing of lensplug's own computation.

make fuzz                                                        # 10,000 cases, and a table
PYTHONPATH=tests python -m fuzz --cases 500 --only rollout       # one property
PYTHONPATH=tests python -m fuzz --seed 20261128 --only rollout --case 17     # what a failure says to type
"""

# The environment is .venv; `hooked` keeps TransformerLens at 3.x, where HookedTransformer is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VENV_4 := .venv-4
VENV_LOWEST := .venv-lowest
BIN_4 := $(VENV_4)/bin
BIN_LOWEST := $(VENV_LOWEST)/bin
UV := $(BIN)/uv

# Models are tiny: a process for each core, and one thread for each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses=8 --dist worksteal -rs
PYTEST_4 := $(subst $(BIN),$(BIN_4),$(PYTEST))

.PHONY: demo test test-bridge test-4 test-lowest test-lowest-short test-cluster fuzz fuzz-media stress lint bench clean

demo: $(BIN)/lensplug
	$(BIN)/lensplug demo

# Notebooks first: the longest take minutes, and tests fill up what is left of the other processes.
test: $(BIN)/lensplug
	$(PYTEST) --nbmake --nbmake-timeout=900 notebooks tests

# Shapes are checked in `make test`; once is enough, and they are a third of the time.
SHAPES_UNCHECKED := -o addopts="--import-mode=importlib -q"

# What reads activations, once more with a TransformerBridge wherever a test does not ask for an engine.
test-bridge: $(BIN)/lensplug
	LENSPLUG_ENGINE=bridge $(PYTEST) $(SHAPES_UNCHECKED) tests/analysis tests/reductions tests/running/test_*gradient*.py tests/running/test_query_positions.py

# The same tests with TransformerLens 4, where a core is a TransformerBridge; what needs a HookedTransformer is skipped.
# Left out, for their minutes: media, where tokens lie in them, pictures, files, processes and signals never meet
# TransformerLens, or do the same with any.
NO_TRANSFORMER_LENS := tests/media tests/fuzz_media tests/views tests/geometry tests/files tests/families tests/positions \
	tests/malformed/test_models.py tests/hf/test_chat_templates.py $(addprefix tests/validation/test_,arguments.py choices.py) \
	$(addprefix tests/tiny/test_,scenes.py voices.py) $(addprefix tests/app/test_,interrupts.py leaks.py terminal.py) \
	tests/study/test_supervision.py $(addprefix tests/audio_llama/test_,convert.py convert_refusals.py)
test-4: $(BIN_4)/lensplug
	$(PYTEST_4) $(SHAPES_UNCHECKED) $(addprefix --ignore=,$(NO_TRANSFORMER_LENS))

# The lowest versions that pyproject.toml allows, as uv finds them: all tests, or one of each kind of model, of
# each engine and of the command. Shapes are not checked: with Python 3.10 jaxtyping decorates what asks not to be.
PYTEST_LOWEST := $(subst $(BIN),$(BIN_LOWEST),$(PYTEST)) -o addopts="--import-mode=importlib -q"
SHORT := tests/test_lens.py tests/engines/test_beside.py tests/audio_llama/test_modeling.py tests/audio_llama/test_convert.py \
	tests/app/test_cli.py tests/analysis/logits/test_logit_lens.py tests/analysis/attention/test_head_specialization.py \
	tests/analysis/attention/test_gradient_rollout.py tests/media/test_videos.py tests/media/test_sounds.py
test-lowest: $(BIN_LOWEST)/lensplug
	$(PYTEST_LOWEST)
test-lowest-short: $(BIN_LOWEST)/lensplug
	$(PYTEST_LOWEST) $(SHORT)

# Studies on a Ray cluster of two machines, by jobs of submitit's and in a bucket, with processes killed; all on this machine.
test-cluster: $(BIN)/lensplug
	$(UV) pip install --quiet --python $(BIN)/python -e ".[ray,slurm]" "moto[s3]>=5.2" flask flask-cors
	LENSPLUG_TEST_CLUSTER=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/study/test_storage.py tests/study/test_ray.py tests/study/test_slurm.py tests/study/test_s3.py

# Random cases against oracles that import nothing of lensplug's own computation; the tests run a few hundred each day.
fuzz: $(BIN)/lensplug
	PYTHONPATH=tests OMP_NUM_THREADS=1 TQDM_DISABLE=1 $(BIN)/python -m fuzz --cases 10000
	PYTHONPATH=tests OMP_NUM_THREADS=1 TQDM_DISABLE=1 $(BIN)/python -m malformed.calls
	PYTHONPATH=tests OMP_NUM_THREADS=1 TQDM_DISABLE=1 HF_HUB_OFFLINE=1 $(BIN)/python -m malformed.models --quiet
	LENSPLUG_INTERRUPTIONS=1000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/running/test_interrupted.py

# Pictures, sounds and videos with something wrong in them, 2,000 of each of 22 kinds; the tests read some each day.
fuzz-media: $(BIN)/lensplug
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m fuzz_media --files 2000

# What shared machines do: a thousand saves of one page by four processes while others read it, 200 signals to commands,
# and a study of 2,000 pictures whose processes are killed 50 times.
stress: $(BIN)/lensplug
	PYTHONPATH=tests $(BIN)/python -m support.concurrent_saves --saves 1000
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m support.signals --signals 200
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m support.killed_studies --examples 2000 --kills 50 --longest 6

lint: $(BIN)/lensplug
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(BIN)/lensplug
	$(BIN)/python benchmarks/wrap.py
	$(BIN)/python benchmarks/light.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/rollout.py
	$(BIN)/python benchmarks/answers.py
	$(BIN)/python benchmarks/listening.py
	$(BIN)/python benchmarks/pointing.py
	$(BIN)/python benchmarks/logit_lens.py
	$(BIN)/python benchmarks/flow.py
	$(BIN)/python benchmarks/exactness.py
	$(BIN)/python benchmarks/study.py
	$(BIN)/python benchmarks/patching.py
	$(BIN)/python benchmarks/interventions.py

# uv unpacks a wheel once, and every environment links to its files: .venv-4 comes after .venv, which has most of them.
$(UV):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv

$(BIN)/lensplug: pyproject.toml | $(UV)
	$(UV) pip install --quiet --python $(BIN)/python -e ".[hooked,dev,sae]"
	touch $@

$(BIN_4)/lensplug: pyproject.toml | $(BIN)/lensplug
	$(PYTHON) -m venv --without-pip $(VENV_4)
	$(UV) pip install --quiet --python $(BIN_4)/python -e ".[dev]" "transformer-lens>=4"
	touch $@

# A version without a wheel for this Python is no candidate: nothing is compiled.
COMPILED := av igraph matplotlib numpy pandas pillow psutil pyarrow scikit-learn scipy soxr torch torchvision
$(BIN_LOWEST)/lensplug: pyproject.toml | $(UV)
	$(PYTHON) -m venv --without-pip $(VENV_LOWEST)
	$(UV) pip install --quiet --python $(BIN_LOWEST)/python --resolution lowest-direct \
		$(addprefix --only-binary=,$(COMPILED)) -e ".[hooked,attribution,audio,flow,probes,static,video]"
	$(UV) pip install --quiet --python $(BIN_LOWEST)/python pytest pytest-xdist hypothesis networkx scikit-image
	touch $@

clean:
	rm -rf $(VENV) $(VENV_4) $(VENV_LOWEST) build *.egg-info lensplug-demo

# Everything that is done on this machine. Real clusters need none of it: ansible-playbook -i inventory/mine site.yml
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
MAKEFLAGS += --no-print-directory

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export PYTHON
# Half of a start of Ansible, and seconds of one with torch, went into compiling the same modules again.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/.lab/pycache

LAB_SERVERS ?=
LAB_LAPTOPS ?=
LAB_SPARES ?=

.PHONY: help venv machine hosts up site status down lint unit test soak bench bundle requirements

help: ## this list
	@awk -F ':.*## ' '/^[a-z_-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	echo "  Variables: LAB_SERVERS=6 LAB_LAPTOPS=2 LAB_SPARES=1 (up, hosts; a spare waits for add-laptop.yml), ARGS='-e node_image_profile=ml' (up, bundle), SCENARIO=ufw KEEP=1 (test), KEEP_IMAGES=1 (down), ROUNDS=5 (soak)"

venv: ## the tools, in .venv, with pinned versions
	@scripts/bootstrap tools

machine:
	@scripts/bootstrap

hosts: machine ## the lab's hosts only: containers that run systemd and sshd
	@scripts/lab size '$(LAB_SERVERS)' '$(LAB_LAPTOPS)' '$(LAB_SPARES)'
	scripts/lab hosts

up: machine ## the whole cluster on this machine
	@scripts/lab size '$(LAB_SERVERS)' '$(LAB_LAPTOPS)' '$(LAB_SPARES)'
	scripts/lab up $(ARGS)

status: venv ## one screen: nodes, containers, versions, what is missing
	@ansible-playbook playbooks/status.yml

down: ## removes the lab without a trace (KEEP_IMAGES=1 keeps the images)
	@scripts/lab down

lint: venv ## ruff, mypy, yamllint, ansible-lint, syntax
	@scripts/run_tests.py lint

unit: venv ## the tests that need no container
	@scripts/run_tests.py unit

test: machine ## lint, unit tests and the Molecule scenarios (SCENARIO=ufw: that one only)
	@scripts/bootstrap browser
	$(if $(SCENARIO),,scripts/bootstrap jobs)
	scripts/base-images
	scripts/run_tests.py $(if $(SCENARIO),scenario:$(SCENARIO))

soak: machine ## the drills, longer: 10,000 tasks, laptops that sleep 20 times, a new head; again and again (ROUNDS=5)
	@scripts/bootstrap browser
	scripts/bootstrap jobs
	scripts/base-images
	export SOAK=1 DRILL_TASKS=$${DRILL_TASKS:-10000} CYCLES=$${CYCLES:-20} TEST_LANES=1
	for round in $$(seq $${ROUNDS:-5}); do
	  echo "round $$round of $${ROUNDS:-5}"
	  scripts/run_tests.py jobs scenario:cluster scenario:laptop_sleep scenario:operate scenario:offline scenario:ray_worker scenario:jobs
	done

bench: machine ## the figures in bench/, measured on this machine
	@python bench/run.py

bundle: machine ## bundle/: all that a site without internet needs (ARGS='-i inventory/mine'; docs/operate.md)
	@ansible-playbook playbooks/bundle.yml $(ARGS)

requirements: venv ## pins the newest versions that requirements/*.in and images/node/*.in allow
	@wheels=$${NODE_IMAGE_WHEELHOUSE:-$$(pip config get global.find-links 2>/dev/null || true)}
	for input in requirements/*.in images/node/*.in; do
	  more=(--universal)
	  if [[ $$input == images/* ]]; then more=(--python-platform x86_64-manylinux_2_28 --no-emit-find-links); fi
	  if [[ $$input == */ml.in ]]; then
	    [[ -d $$wheels ]] || { echo "requirements: $$input skipped: NODE_IMAGE_WHEELHOUSE must name a folder with torch for CPUs"; continue; }
	    more+=(--find-links "$$wheels")
	  fi
	  uv pip compile --quiet --upgrade --python-version 3.11 --no-annotate --no-emit-index-url "$${more[@]}" \
	    --custom-compile-command 'make requirements' "$$input" --output-file "$${input%.in}.txt"
	done

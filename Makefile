# The commands of this repository; `make help` lists them. Arguments go along as in `make demo ARGS=--interactive`.
.DEFAULT_GOAL := help
ARGS ?=

.PHONY: help setup demo test bench rolls lint build clean

help: ## list these commands
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

demo: ## a whole run on a sample cluster in emulated AWS, from nothing to a page that shows it
	@tools/demo $(ARGS)

test: ## every test, end to end included; ends with one line of counts
	@tools/test $(ARGS)

setup: ## install what demo and test need, into the user's cache
	@tools/kops/get >/dev/null & kops=$$!; tools/kubernetes/get >/dev/null & kubernetes=$$!; \
	tools/setup --test && wait $$kops && wait $$kubernetes

build: ## the functions for Lambda on this machine's architecture, and the kopsline command
	@tools/build $(ARGS)

bench: ## times and sizes, beside their goals
	@tools/bench $(ARGS)

rolls: ## a million simulated rolls with faults, held to every rule; half an hour on two cores
	@cargo run --profile fast --locked -p kopsline-simulator --bin simulate -- --rolls 1000000 $(ARGS)

lint: ## formatting, clippy, state machines, template
	@tools/test format machines lint tools

clean: ## remove what was built here; what was fetched stays in the user's cache
	@rm -rf target .aws-sam .kopsline tools/node_modules

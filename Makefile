PY ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch

.PHONY: help demo test docs edit nb run export check bench clean setup

help:  ## show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

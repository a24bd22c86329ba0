# SPDX-License-Identifier: GPL-2.0
# The front door. "make help" tells what there is.

export BUILD ?= build
export ACCEL ?= auto
export KSRC ?=
DEBUG ?= 0
EXEC ?=
FULL ?= 0
export VERSION ?=
export SIGNOFF ?=
export PREVIOUS ?=
export TOPIC ?=
export HELD ?=
J ?= $(shell nproc)

override BUILD := $(abspath $(BUILD))
LINUX := $(BUILD)/linux
VMTEST := $(LINUX)/tools/testing/selftests/vfio/vmtest.sh
ifeq ($(DEBUG),1)
KDIR := $(BUILD)/kernel-debug
GUEST_OPTS := -D
else
KDIR := $(BUILD)/kernel
endif
export KDIR
GUEST := $(VMTEST) -d $(KDIR) -j $(J) $(GUEST_OPTS)

.DEFAULT_GOAL := help
.PHONY: help deps tree refresh refresh-check kernel demo test check series \
	bench nvgrace guest shell clean

help:
	@cat scripts/help.txt

deps:
	@scripts/deps

tree: deps
	@scripts/series tree

refresh: deps
	@scripts/series refresh

refresh-check: deps
	@scripts/series check

kernel: tree
	@$(GUEST) --build

guest: tree
	@[ -n "$(EXEC)" ] || { echo 'usage: make guest EXEC="PROGRAM [ARGS]"'; exit 2; }
	@$(GUEST) --exec $(EXEC)

shell: tree
	@$(GUEST) --shell

demo: tree
	@scripts/demo $(GUEST)

test: deps
	@scripts/test

# KSRC is another kernel here, not the base
check: deps
	@KSRC= scripts/series tree
	@FULL=$(FULL) scripts/check

series: tree
	@scripts/send

nvgrace: tree
	@scripts/deps acpica-tools
	@scripts/nvgrace/run

bench: tree
	@scripts/deps gnuplot-nox
	@scripts/bench

clean:
	rm -rf $(BUILD)/kernel $(BUILD)/kernel-debug $(BUILD)/demo $(BUILD)/bench \
		$(BUILD)/check $(BUILD)/nvgrace

# SPDX-License-Identifier: GPL-2.0
# The front door. "make help" tells what there is. The scripts see the variables of the
# command line in their environment.

override BUILD := $(abspath $(or $(BUILD),build))
J ?= $(shell nproc)
debug := $(filter 1,$(DEBUG))
arm64 := $(filter arm64,$(ARCH))
KDIR := $(BUILD)/kernel$(arm64:%=-%)$(debug:1=-debug)
GUEST := $(BUILD)/linux/tools/testing/selftests/vfio/vmtest.sh \
	-d $(KDIR) -j $(J) $(debug:1=-D)
export BUILD KDIR
ifdef arm64
export SYSROOT := $(BUILD)/sysroot-arm64
endif

.PHONY: help deps tree refresh refresh-check kernel demo test check series \
	bench nvgrace example clients deb deb-guest model guest shell clean

help:
	@cat scripts/help.txt

deps:
	@scripts/deps

tree refresh: deps
	@scripts/series $@

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
	@scripts/check

series: tree
	@scripts/send

nvgrace: tree
	@scripts/deps $(if $(arm64),device-tree-compiler,acpica-tools)
	@scripts/nvgrace/run

example: tree
	@examples/virtio-blk/run $(GUEST)

clients: tree
	@scripts/deps mmdebstrap squashfs-tools-ng
	@scripts/clients/run

deb deb-guest: tree
	@scripts/deps cpio debhelper e2fsprogs kmod libdw-dev libssl-dev mmdebstrap rsync
	@scripts/deb/run $(@:deb-%=%)

model:
	@scripts/deps spin
	@scripts/model/run

bench: tree
	@scripts/deps gnuplot-nox
	@scripts/bench/run

clean:
	rm -rf $(BUILD)/kernel* $(addprefix $(BUILD)/,demo bench check nvgrace virtio-blk \
		clients deb model sysroot-arm64 sysroot-i386)

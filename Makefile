# SPDX-License-Identifier: MIT
# A short way to each thing one does with the tree; meson does the work.
# Every target first installs the Debian packages it misses (as root or with sudo).

BUILD  ?= build
PREFIX ?= /usr/local
PYTHON := /usr/bin/python3

.PHONY: all help build demo check check-quick fuzz bench install format clean

all: build

help:
	@sed -n 's/^## //p' Makefile

## make            build everything in ./build
build: $(BUILD)/build.ninja
	@ninja -C $(BUILD) --quiet

$(BUILD)/build.ninja:
	@scripts/install-deps build
	@meson setup $(BUILD) --prefix $(PREFIX) -Dwerror=true >/dev/null

## make demo       the main job, end to end, on a real disk image
demo:
	@scripts/install-deps build demo
	@$(MAKE) --no-print-directory build
	@$(PYTHON) examples/demo/demo.py --build $(BUILD)

## make check      all tests, also under the sanitizers; ends with the count
check:
	@scripts/install-deps build check
	@$(PYTHON) scripts/check.py

## make check-quick  the tests of the plain build alone
check-quick:
	@scripts/install-deps build check
	@$(PYTHON) scripts/check.py --quick

## make fuzz       look for bad input, FUZZ_SECONDS (60) for each target
fuzz:
	@scripts/install-deps build check
	@$(PYTHON) tests/fuzz/run.py $(FUZZ_TARGETS)

## make bench      speed beside QEMU's programs
bench:
	@scripts/install-deps build bench
	@$(PYTHON) tests/bench/bench.py

## make install    install into PREFIX (DESTDIR is honoured)
install: build
	@meson install -C $(BUILD) --no-rebuild

## make format     lay out the C sources
format:
	@git ls-files '*.c' '*.h' | xargs clang-format -i

clean:
	@rm -rf build build-*

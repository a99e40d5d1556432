/* SPDX-License-Identifier: MIT */
/*
 * Fuzz targets: programs that hand any bytes whatever to one of our parsers.
 *
 * A target is one file fuzz-WHAT.c with the function below. It must take every input without a
 * fault of memory, an assertion, an endless loop or memory without bound, and leaves nothing
 * behind that could change what it does with the next one. Beyond not failing, each target checks
 * what must hold for any input; the check that fails aborts, as a fault does.
 *
 * Each target is linked in one of two ways. In every build with replay.c: a main function that runs
 * the seeds in corpus/WHAT, all their beginnings, and mutations of them that are the same each
 * time. With -Dfuzzing=true (`make fuzz`) with libFuzzer, which looks for new inputs by the code
 * they reach.
 *
 * The first call initialises what a target needs. All calls are made by one thread.
 */
#ifndef MERINO_FUZZ_H
#define MERINO_FUZZ_H

#include <glib.h>
#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Something that must hold does not: say so and abort. */
void fuzz_fail(const char *format, ...) G_GNUC_PRINTF(1, 2) G_GNUC_NORETURN;

#endif

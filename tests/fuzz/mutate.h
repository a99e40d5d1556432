/* SPDX-License-Identifier: MIT */
/*
 * Mutations of an input: small damage of the kinds that parsers stumble over.
 *
 * What is done depends on the random numbers alone, so the same seed gives the same inputs.
 */
#ifndef MERINO_FUZZ_MUTATE_H
#define MERINO_FUZZ_MUTATE_H

#include <glib.h>

#define MUTATE_MAX_BYTES (64 << 10) /* no mutation lets an input grow beyond */

typedef struct MutationSource {
    GRand *rand;
    GPtrArray *seeds; /* GBytes *, at least one */
    GPtrArray *words; /* GBytes *, of the dictionary */
} MutationSource;

/* Words of a dictionary in libFuzzer's format: lines "text" or name="text", with \xNN, \\ and \"
 * inside; # begins a comment. */
GPtrArray *mutate_read_dictionary(const char *path, GError **error);

/* A new input, made of one of the seeds. */
GByteArray *mutate_next(const MutationSource *source);

#endif

/* SPDX-License-Identifier: MIT */
/*
 * Metadata contexts: the questions that block status can answer.
 *
 * An export has base:allocation, qemu:allocation-depth when it was asked to, and
 * qemu:dirty-bitmap:NAME for each of its bitmaps. Their ids are fixed: 0, 1, and 2 plus the
 * bitmap's position. A client selects some of them by name during negotiation.
 */
#ifndef MERINO_NBD_META_CONTEXT_H
#define MERINO_NBD_META_CONTEXT_H

#include "export.h"

enum {
    NBD_CONTEXT_ALLOCATION = 0,
    NBD_CONTEXT_DEPTH = 1,
    NBD_CONTEXT_FIRST_BITMAP = 2,
};

/* Selected contexts. All-zero is a valid value: none, of no export. */
typedef struct NbdContexts {
    uint64_t export_serial; /* whose contexts these are; 0: nobody's */
    GByteArray *selected;   /* by id, 0 or 1; or NULL */
    unsigned n;             /* how many are selected */
} NbdContexts;

void nbd_contexts_init(NbdContexts *contexts, const NbdExport *exp);
void nbd_contexts_done(NbdContexts *contexts);

static inline bool nbd_contexts_has(const NbdContexts *contexts, uint32_t id)
{
    return contexts->selected && id < contexts->selected->len && contexts->selected->data[id];
}

/* Number of contexts that the export has room for: ids are below it. */
uint32_t nbd_context_limit(const NbdExport *exp);

/* The context's name; the caller frees. */
char *nbd_context_name(const NbdExport *exp, uint32_t id);

/* Select what a client's query of `length` bytes names. When `listing`, "base:", "qemu:" and
 * "qemu:dirty-bitmap:" stand for all that begins so. Unknown names select nothing. */
void nbd_contexts_select(NbdContexts *contexts, const NbdExport *exp, const char *query,
                         size_t length, bool listing);
void nbd_contexts_select_all(NbdContexts *contexts, const NbdExport *exp);

#endif

/* SPDX-License-Identifier: MIT */
/*
 * Drivers for the tests of the graph, in place of the real ones: they keep their data in memory,
 * hold requests back when a test wants it, and count what they are told.
 *
 *   null-co            a disk in memory (size, default 1 MiB)
 *   raw                a window on its file child: filtered, or data when offset or size is given
 *   copy-before-write  a filter with a file and a target, by CHILD_FILTERED and CHILD_OTHER; it
 *                      does not let its file be written by others while somebody uses it
 *   snapshot-access    pinned on its file
 */
#ifndef MERINO_TESTS_GRAPH_DRIVERS_H
#define MERINO_TESTS_GRAPH_DRIVERS_H

#include "block/backend.h"
#include "block/driver.h"

/* The state of a null-co node. */
typedef struct MemoryDisk {
    uint8_t *data;
    int generation;        /* plain on purpose: written while drained, read by requests */
    atomic_int inside;     /* requests in the driver at this moment */
    atomic_int requests;   /* all that ever came */
    atomic_bool hold;      /* requests wait until it is taken away */
    atomic_bool frozen;    /* the test believes that no request is here ... */
    atomic_int trespasses; /* ... and so many were */
    int flushes;
    bool refuse_flush; /* flushing fails */
    int quiet_begins, quiet_ends;
    int hurry_begins, hurry_ends;
    int set_perm_calls;
    unsigned perm, shared; /* as last told */
    bool refuse_perm;      /* set_perm fails */
    bool refuse_reopen;
    bool reopened_read_only; /* committed */
} MemoryDisk;

void graph_drivers_register(void);
MemoryDisk *memory_disk(BlockNode *node);

/* blockdev-add and blockdev-reopen from JSON text (single quotes for double ones). */
BlockNode *add_node(const char *format, ...) G_GNUC_PRINTF(1, 2);
char *add_node_error(const char *format, ...) G_GNUC_PRINTF(1, 2);
bool reopen(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);
BlockdevOptions *parse_options(const char *text);

/* Delete by name; the node must be deletable. */
void delete_node(const char *node_name);
/* Delete all, and check that nothing was left. */
void delete_all(void);

/* What the error said; frees it. */
#define assert_error(error, text)                                                                  \
    do {                                                                                           \
        g_assert_error(error, MERINO_ERROR, MERINO_ERROR_GENERIC);                                 \
        g_assert_cmpstr((error)->message, ==, text);                                               \
        g_clear_error(&(error));                                                                   \
    } while (0)

#endif

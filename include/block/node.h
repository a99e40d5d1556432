/* SPDX-License-Identifier: MIT */
/*
 * Nodes and edges: the block graph.
 *
 * A BlockNode is one layer of a disk: a driver, its state and its children. A BlockChild is an
 * edge: from a parent node or a BlockBackend (block/backend.h) to a node, with the permissions the
 * parent uses and those it lets others use. Nodes live as long as somebody holds a reference: each
 * edge from above, and the monitor for nodes made by blockdev-add.
 *
 * Calling context: everything here is control plane (the main thread, outside coroutines) unless
 * said otherwise. A node's edges, driver options and bitmap list change only while the node is
 * drained, so requests read them without locks.
 */
#ifndef MERINO_BLOCK_NODE_H
#define MERINO_BLOCK_NODE_H

#include "block/dirty-bitmap.h"
#include "qapi/qapi-types.h"
#include "util/undo.h"

#include <stdatomic.h>

typedef struct BlockBackend BlockBackend;
typedef struct BlockDriver BlockDriver;
typedef struct BlockNode BlockNode;

/* What a parent does with a node, and what it can bear others doing. Numbers are the bit numbers
 * used in QEMU's image locks. */
typedef enum BlockPerm {
    PERM_CONSISTENT_READ = 1 << 0,
    PERM_WRITE = 1 << 1,
    PERM_WRITE_UNCHANGED = 1 << 2, /* writes that leave what is read as it was */
    PERM_RESIZE = 1 << 3,
    PERM_ALL = 15,
} BlockPerm;

typedef enum ChildRole {
    CHILD_DATA,     /* guest data of a format: permissions pass through, resize is added */
    CHILD_METADATA, /* data and metadata of a format: exclusive against other writers */
    CHILD_FILTERED, /* the filtered node: all passes through */
    CHILD_COW,      /* a backing file: read only, unchanged by others */
    CHILD_OTHER,    /* the driver's child_perm says everything */
} ChildRole;

typedef struct BlockChild {
    BlockNode *node;
    BlockNode *parent;     /* or NULL */
    BlockBackend *backend; /* or NULL: exactly one of the two is the user */
    char *name;            /* "file", "backing", "target", "root" */
    ChildRole role;
    atomic_uint perm; /* BlockPerm bits in use; requests may look at them */
    unsigned shared;  /* BlockPerm bits that others may use */
} BlockChild;

typedef struct BlockLimits {
    int64_t request_alignment; /* of offsets and lengths, bytes, power of two, at least 1 */
    int64_t memory_alignment;  /* of buffers, bytes, power of two */
    int64_t max_transfer;      /* bytes of one read or write; 0: no limit */
    int64_t max_zeroes;        /* bytes of one zero-write; 0: no limit */
    int64_t max_discard;       /* bytes of one discard; 0: no limit */
    int64_t discard_alignment; /* what discards are rounded inwards to */
    int64_t optimal_transfer;  /* a hint for clients; 0: none */
    unsigned read_flags;  /* REQ_* that co_preadv understands; `vec` is NULL for REQ_PREFETCH */
    unsigned write_flags; /* REQ_* that co_pwritev does itself */
    unsigned zero_flags;  /* REQ_* that co_pwrite_zeroes does itself */
} BlockLimits;

struct BlockNode {
    char *node_name;
    const BlockDriver *driver;
    void *state;              /* the driver's, driver->state_size zeroed bytes */
    BlockdevOptions *options; /* as they were given last; inline children are left out */
    BlockNode *inherits_from; /* the parent whose options describe this node inline; or NULL */
    BlockNode *older, *newer; /* the registry's order */

    _Atomic int64_t size; /* bytes */
    BlockLimits limits;
    bool read_only;
    bool was_writable; /* while blockdev-reopen is at work: what read_only was not before */
    bool auto_read_only;
    bool force_share;
    bool for_check;      /* opened by node_open_for_check() */
    bool discard_unmap;  /* discard=unmap: pass discards on; else they end here */
    bool cache_direct;   /* cache.direct */
    bool cache_no_flush; /* cache.no-flush */
    BlockdevDetectZeroesOptions detect_zeroes;

    char *filename;       /* what queries show; "" when there is none */
    char *backing_name;   /* the backing file as the image's header names it; NULL: none */
    char *backing_format; /* and its format; NULL: not said */
    char *named_backing;  /* what queries show for the node that the header names; NULL: none */
    BitmapList *bitmaps;
    GPtrArray *children; /* BlockChild *, owned, in the order of their opening */
    GPtrArray *parents;  /* BlockChild *, borrowed */
    BlockChild *file;    /* the child that is filtered or holds the data; or NULL */
    BlockChild *backing; /* or NULL */

    bool open;          /* from the end of the driver's open to the beginning of its close */
    bool monitor_owned; /* made by blockdev-add and not deleted since */
    unsigned refs;
    unsigned perm, shared; /* what all parents together use and share */
    unsigned drain_depth;  /* how many drained sections cover this node */
    unsigned quiet_depth;  /* how many cover it or something above it */
    bool driver_quiet;     /* the driver's drain_begin() was called */
    unsigned hurry_depth;  /* how many hurried sections cover this node */
    bool driver_hurried;   /* the driver's hurry_begin() was called */

    atomic_bool has_grown; /* in requests, which the main thread is to hear of */

    struct RequestTracker *tracker; /* overlapping requests (core/tracked.c) */
    _Atomic uint64_t write_count;   /* writes done since opening, for flush elision */
    _Atomic uint64_t flushed_count;
};

/* --- names and look-up --- */

/* NULL when there is none. */
BlockNode *node_find(const char *node_name);
/* The same with QEMU's words: Cannot find device='' nor node-name='x'. */
BlockNode *node_lookup(const char *node_name, GError **error);
/* All nodes, newest first: node_next(NULL) is the newest. */
BlockNode *node_next(BlockNode *previous);

BlockNode *node_ref(BlockNode *node);
void node_unref(BlockNode *node); /* closes with the last reference; NULL ok */

int64_t node_size(const BlockNode *node); /* any thread */
bool node_is_filter(const BlockNode *node);
/* The node below all filters. */
BlockNode *node_skip_filters(BlockNode *node);
/* Whether it grows by being written beyond its end. */
bool node_can_grow(const BlockNode *node);
/* Have the node's bitmaps cover what the node has grown by. Before looking at bitmaps of a node
 * that is not drained; control plane. */
void node_settle(BlockNode *node);
/* Bytes occupied on storage, or -errno. */
int64_t node_allocated_size(BlockNode *node);
/* Cluster size of the format, 0 when it has none. */
int64_t node_cluster_size(BlockNode *node);

/* --- life --- */

/* Open a node and its inline children. The caller owns the reference. */
BlockNode *node_open(const BlockdevOptions *options, GError **error);
/* The same for node_check() alone: the format lets damage through, and nothing else may be done
 * with the node. */
BlockNode *node_open_for_check(const BlockdevOptions *options, GError **error);

/* The same, or a reference to the node that `ref` names. */
BlockNode *node_open_ref(const BlockdevRef *ref, GError **error);

/* blockdev-add, blockdev-del, blockdev-reopen, in QEMU's words. */
bool node_add(const BlockdevOptions *options, GError **error);
bool node_delete(const char *node_name, GError **error);
bool node_reopen(const BlockdevOptionsList *options, GError **error);

/* Whether a disk may have that size: neither negative nor so large that rounding overflows. */
bool node_check_size(int64_t size, GError **error);

/* block_resize. Refused for busy bitmaps and without resize permission. */
bool node_resize(BlockNode *node, int64_t size, GError **error);
/* The same, with what is new allocated as `prealloc` says; not for shrinking. */
bool node_resize_preallocated(BlockNode *node, int64_t size, PreallocMode prealloc, GError **error);

/* --- edges --- */

/* A driver's open: attach the child that `ref` names or describes, in `role`. On failure nothing
 * is attached. `name` is copied. */
BlockChild *node_open_child(BlockNode *parent, const BlockdevRef *ref, const char *name,
                            ChildRole role, GError **error);
/* Attach a node that is there. Takes a reference of its own. */
BlockChild *node_attach_child(BlockNode *parent, BlockNode *node, const char *name, ChildRole role,
                              GError **error);
void node_detach_child(BlockChild *child);

/* Point `child` at another node, with permissions checked; taken back by `undo`. Drains the
 * parent, both nodes and what is beneath until `undo` ends. */
bool child_set_node(BlockChild *child, BlockNode *node, UndoStack *undo, GError **error);

/* Point every parent of `from` at `to`, except `to` itself, what is below it, and drivers that mean
 * just this node (pins_children). Drains like child_set_node(). */
bool node_replace(BlockNode *from, BlockNode *to, UndoStack *undo, GError **error);

/* Compute the permissions of `node` and of everything beneath from their parents again, and check
 * them for conflicts. Taken back by `undo`. */
bool node_refresh_perms(BlockNode *node, UndoStack *undo, GError **error);

/* Whether `to` is `from` or somewhere below it. */
bool node_reaches(const BlockNode *from, const BlockNode *to);

/* --- drain (block/core/drain.c states the rule) --- */

/* Wait until no request is in flight in these nodes or above them, and hold new ones back until
 * drain_end(). All together: no request falls between two of the nodes' drained sections.
 * Nests. Main thread. */
typedef struct DrainSection DrainSection;
DrainSection *drain_begin(BlockNode *const nodes[], size_t n);
DrainSection *drain_begin_node(BlockNode *node);
DrainSection *drain_begin_all(void);
void drain_end(DrainSection *section);
/* End it when `undo` ends, after everything on that stack is committed or taken back. */
void drain_end_with(DrainSection *section, UndoStack *undo);

/* Give back memory of the bitmaps of a node, or of all nodes, if nobody uses it at this moment;
 * waits for nobody. Control plane, for moments when something has come to its end. Drained sections
 * do the same. */
void node_tidy_idle(BlockNode *node);
void nodes_tidy_idle(void);

/* --- hurry (block/core/hurry.c states the rule) --- */

/* Let go the requests that wait for nothing but time or somebody's word, in a node and all that it
 * reaches or in all nodes, and let none come to wait so until hurry_end(). For whoever waits for
 * requests to end; drained sections do it by themselves. Nests. Main thread; never polls. */
typedef struct HurrySection HurrySection;
HurrySection *hurry_begin_node(BlockNode *node);
HurrySection *hurry_begin_all(void);
void hurry_end(HurrySection *section);

/* --- our extension: filters put over a live node in one instant --- */

/* Create the filter that `options` describes and put it between its `file` node and that node's
 * present parents. Drains by itself unless the caller already did. Undone exactly. */
BlockNode *node_insert_filter(const BlockdevOptions *options, UndoStack *undo, GError **error);
bool node_remove_filter(const char *node_name, UndoStack *undo, GError **error);
/* The node a filter's options would be put over, for draining beforehand; NULL with an error. */
BlockNode *node_filter_target(const BlockdevOptions *options, GError **error);

/* --- reports --- */

BlockDeviceInfo *node_info(BlockNode *node, bool flat, GError **error);

/* Close every monitor-owned node that nothing uses; at exit. */
void node_close_all(void);

#endif

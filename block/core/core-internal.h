/* SPDX-License-Identifier: MIT */
/*
 * What the files of block/core share among themselves and show to nobody else.
 *
 * All of it is control plane: the main thread, outside coroutines, unless said otherwise.
 */
#ifndef MERINO_BLOCK_CORE_INTERNAL_H
#define MERINO_BLOCK_CORE_INTERNAL_H

#include "block/backend.h"
#include "block/driver.h"
#include "block/node.h"

/* --- backends (backend.c) --- */

struct BlockBackend {
    char *user;
    unsigned perm, shared; /* what is asked of the node, also while there is none */
    BlockChild *root;      /* NULL when detached */
    void (*change_fn)(void *opaque);
    void *change_opaque;
    BlockBackend *older, *newer; /* the list of all backends */

    /* The door: DOOR_CLOSED times the number of drained sections that keep it closed, plus the
     * number of requests inside (drain.c states the rules). */
    _Atomic uint64_t door;
    _Atomic uint64_t hinted; /* where the next write is expected, or NOWHERE */
    GMutex lock;             /* guards `waiting` */
    CoQueue waiting;         /* requests that found the door closed */
};

#define DOOR_CLOSED (UINT64_C(1) << 32)
#define NOWHERE     UINT64_MAX

void door_close(BlockBackend *backend);
void door_open(BlockBackend *backend);
bool door_is_idle(BlockBackend *backend); /* nobody inside */
void door_wait_idle(BlockBackend *backend);

void backend_notify_change(BlockBackend *backend);

/* --- drain (drain.c) --- */

/* Covers everything that `nodes` reach as well: for changes that go down the graph. */
DrainSection *drain_begin_below(BlockNode *const nodes[], size_t n);

/* A new edge: open sections that cover its node cover its parent from now on. */
void drain_edge_added(BlockChild *edge);
/* The backend or node is about to be freed: open sections forget it. */
void drain_forget_backend(BlockBackend *backend);
void drain_forget_node(BlockNode *node);

/* --- hurry (hurry.c) --- */

/* A section that covers nothing yet; and a node, with all beneath it, that it is to cover. */
HurrySection *hurry_begin(void);
void hurry_add(HurrySection *section, BlockNode *node);

/* A new edge, a node that has been opened, or one about to be freed: open sections follow. */
void hurry_edge_added(BlockChild *edge);
void hurry_node_opened(BlockNode *node);
void hurry_forget_node(BlockNode *node);

/* --- nodes (node.c) --- */

/* Whether the name may be given to a new node, in QEMU's words. */
bool node_check_name(const char *node_name, GError **error);

/* A node without driver state that is in nobody's list yet; `node_name` NULL: an automatic one. */
BlockNode *node_new(const BlockDriver *driver, const char *node_name);
/* Put it in the registry; false when its name was taken meanwhile. */
bool node_register(BlockNode *node, GError **error);
bool node_is_listed(const BlockNode *node);
/* Close (when open), detach children, leave the registry, free. */
void node_destroy(BlockNode *node);

/* --- opening (open.c) --- */

/* The name of the driver whose images begin like this; "raw" when nobody knows them. */
const char *driver_probe(const uint8_t *head, size_t bytes);

/* Open what `ref` describes as an inline child of `parent` (or NULL) in `role` would be, or take a
 * reference of what it names, without attaching it. */
BlockNode *node_open_for(BlockNode *parent, const BlockdevRef *ref, ChildRole role, GError **error);

/* --- edges (edge.c) --- */

/* An edge and its reference, without permissions; exactly one of parent and backend is given. */
BlockChild *edge_new(BlockNode *parent, BlockBackend *backend, BlockNode *node, const char *name,
                     ChildRole role);
/* Leave the graph and drop the reference; permissions are the caller's business. */
void edge_free(BlockChild *edge);
/* The same, taken back by `undo`. */
void edge_detach(BlockChild *edge, UndoStack *undo);

/* A new edge, taken back by `undo`; permissions are the caller's business. */
void edge_attach(BlockNode *parent, BlockNode *node, const char *name, ChildRole role,
                 UndoStack *undo);

/* Point the edge elsewhere, taken back by `undo`; permissions are the caller's business. */
void edge_move(BlockChild *edge, BlockNode *node, UndoStack *undo);

/* "node 'x'" or the backend's words. Caller frees. */
char *edge_user(const BlockChild *edge);

/* Fails when `node` as `name` child of `parent` would close a circle. */
bool edge_check_cycle(const BlockNode *parent, const BlockNode *node, const char *name,
                      GError **error);

/* The child of that name; NULL when there is none. */
BlockChild *node_find_child(const BlockNode *node, const char *name);

/* Everything that `nodes` reach, themselves included, parents before their children. */
GPtrArray *graph_descendants(BlockNode *const nodes[], size_t n);

/* The nodes and everything above them, children before their parents. */
GPtrArray *graph_ancestors(BlockNode *const nodes[], size_t n);

/* Take over limits, size and file name from the children, here and above. Drained or opening. */
void node_refresh(BlockNode *const nodes[], size_t n);
/* The same when `undo` commits. */
void node_refresh_with(BlockNode *const nodes[], size_t n, UndoStack *undo);

/* --- sizes that grow in requests (grow.c) --- */

/* Whether the node's size is that of its `file` child, moved or not. */
bool node_follows_file(const BlockNode *node);
/* As storage or the child has it now, or -errno; node_size() when that cannot differ. */
int64_t node_current_size(BlockNode *node);
/* The bitmaps follow the node's size. Drained. */
void node_settle_size(BlockNode *node);

/* --- permissions (perm.c) --- */

/* Compute and check the permissions of `nodes` and of everything beneath. The nodes whose sums
 * change are drained or were not in use. With `undo` NULL it is final. */
bool perm_refresh(BlockNode *const nodes[], size_t n, UndoStack *undo, GError **error);

/* --- options (options.c) --- */

/* The options that every driver has. */
typedef struct CommonOptions {
    bool read_only;
    bool auto_read_only;
    bool force_share;
    bool discard_asked; /* discard=unmap was said or inherited */
    bool discard_unmap; /* in force: filters pass discards on unasked */
    bool cache_direct;
    bool cache_no_flush;
    BlockdevDetectZeroesOptions detect_zeroes;
} CommonOptions;

/* The common options in force: given ones, else those of `parent` (NULL: none) for an inline child
 * in `role`, else defaults. */
void common_options_resolve(const BlockdevOptions *options, const CommonOptions *parent,
                            ChildRole role, CommonOptions *ret);
/* Fail on combinations that contradict. */
bool common_options_check(const CommonOptions *common, GError **error);
bool common_options_check_zeroes(const CommonOptions *common, GError **error);
void common_options_of(const BlockNode *node, CommonOptions *ret);
void common_options_apply(BlockNode *node, const CommonOptions *common);

/* A copy for the node to keep: without what children were described as inline, which is theirs. */
BlockdevOptions *options_keep(const BlockdevOptions *options);

/* The members of BlockdevOptions that belong to the driver alone. */
typedef struct OptionIter {
    const QapiType *branch; /* NULL: the driver has none */
    const char *base;
    size_t next;
    const QapiMember *member;
    const void *slot;
    bool is_child;
    bool child_is_null;       /* a child member says that there is to be none */
    const BlockdevRef *child; /* what a child member says; NULL when it is absent or null */
} OptionIter;

void option_iter_init(OptionIter *iter, const BlockdevOptions *options);
bool option_iter_next(OptionIter *iter);
/* The value of a member that is no child; NULL when it is absent. The caller owns it. */
json_t *option_value(const OptionIter *iter);
/* Add it to `object`, members and list items by their paths: "name.0.member". */
void option_add_flat(json_t *object, const OptionIter *iter);

/* The child that `options` name or describe as `name`; NULL when they do not. */
const BlockdevRef *options_child(const BlockdevOptions *options, const char *name);
/* What `backing` says, for drivers that have it; NULL when it is absent, or there is no such
 * option. */
const BlockdevRefOrNull *options_backing(const BlockdevOptions *options);
/* Whether the driver of `options` can have a backing file. */
bool options_have_backing(const BlockdevOptions *options);

/* --- backing files (backing.c) --- */

/* Whether the node stands over something other than what its header names. */
bool node_backing_is_overridden(const BlockNode *node);
/* For blockdev-reopen: exchange, attach or detach the backing child as `given` (or NULL) says. */
bool backing_reopen(BlockNode *node, const BlockdevRefOrNull *given, UndoStack *undo,
                    GError **error);

/* --- file names (filename.c) --- */

/* What queries show for the node: a plain name, or "json:{...}". */
void node_refresh_filename(BlockNode *node);

#endif

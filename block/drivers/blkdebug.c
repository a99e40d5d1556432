/* SPDX-License-Identifier: MIT */
/*
 * The driver `blkdebug`: a filter for tests, whose requests fail or are suspended where its
 * rules say, and whose limits can be made as narrow as wanted.
 *
 * Rules wait for events: what the node above and the core tell of their doings by
 * node_debug_event().
 */
#include "blkdebug.h"
#include "block/backing.h"
#include "block/blkdebug.h"
#include "block/drivers.h"
#include "util/error.h"
#include "util/size.h"

#include <errno.h>
#include <inttypes.h>

typedef struct BlkdebugState {
    BlkdebugRules rules;
    int64_t align, max_transfer; /* bytes; 0: not given */
    int64_t opt_zero, max_zero;
    int64_t opt_discard, max_discard;
    unsigned take, unshare; /* BlockPerm bits */
} BlkdebugState;

/* --- limits --- */

typedef struct LimitOption {
    const char *name;
    int64_t value;
} LimitOption;

static bool check_not_negative(const LimitOption *limits, size_t n, GError **error)
{
    for (size_t i = 0; i < n; i++) {
        if (limits[i].value < 0) {
            merino_error(error, "Parameter '%s' expects a non-negative number below 2^64",
                         limits[i].name);
            return false;
        }
    }
    return true;
}

static bool take_limits(BlkdebugState *blkdebug, const BlockdevOptionsBlkdebug *own, GError **error)
{
    LimitOption limits[] = {
        { "align", own->has_align ? own->align : 0 },
        { "max-transfer", own->has_max_transfer ? own->max_transfer : 0 },
        { "opt-write-zero", own->has_opt_write_zero ? own->opt_write_zero : 0 },
        { "max-write-zero", own->has_max_write_zero ? own->max_write_zero : 0 },
        { "opt-discard", own->has_opt_discard ? own->opt_discard : 0 },
        { "max-discard", own->has_max_discard ? own->max_discard : 0 },
    };

    if (!check_not_negative(limits, G_N_ELEMENTS(limits), error)) {
        return false;
    }
    blkdebug->align = limits[0].value;
    blkdebug->max_transfer = limits[1].value;
    blkdebug->opt_zero = limits[2].value;
    blkdebug->max_zero = limits[3].value;
    blkdebug->opt_discard = limits[4].value;
    blkdebug->max_discard = limits[5].value;
    return true;
}

static bool check_limit(const char *name, int64_t value, int64_t align, GError **error)
{
    if (value >= INT32_MAX || value % align != 0) {
        merino_error(error, "Cannot meet constraints with %s %" PRId64, name, value);
        return false;
    }
    return true;
}

static bool check_limits(const BlkdebugState *blkdebug, int64_t image_align, GError **error)
{
    int64_t align = MAX(blkdebug->align, image_align);

    if (blkdebug->align && (blkdebug->align >= INT32_MAX || !is_power_of_2(blkdebug->align))) {
        merino_error(error, "Cannot meet constraints with align %" PRId64, blkdebug->align);
        return false;
    }
    return check_limit("max-transfer", blkdebug->max_transfer, align, error) &&
           check_limit("opt-write-zero", blkdebug->opt_zero, align, error) &&
           check_limit("max-write-zero", blkdebug->max_zero, MAX(blkdebug->opt_zero, align),
                       error) &&
           check_limit("opt-discard", blkdebug->opt_discard, align, error) &&
           check_limit("max-discard", blkdebug->max_discard, MAX(blkdebug->opt_discard, align),
                       error);
}

/* The core knows powers of two; other alignments are seen to below. Durability is left to flushes,
 * which rules can see. */
static void blkdebug_refresh_limits(BlockNode *node)
{
    const BlkdebugState *blkdebug = node->state;
    const BlockLimits *image = &node->file->node->limits;

    node->limits = (BlockLimits){
        .request_alignment = MAX(blkdebug->align, 1),
        .memory_alignment = image->memory_alignment,
        .max_transfer = blkdebug->max_transfer,
        .max_zeroes = blkdebug->max_zero,
        .max_discard = blkdebug->max_discard,
        .discard_alignment =
            is_power_of_2(MAX(blkdebug->opt_discard, 1)) ? MAX(blkdebug->opt_discard, 1) : 1,
        .optimal_transfer = image->optimal_transfer,
        .write_flags = REQ_WRITE_UNCHANGED,
        .zero_flags = REQ_WRITE_UNCHANGED | REQ_MAY_UNMAP | REQ_NO_FALLBACK,
    };
}

/* --- opening --- */

static unsigned perms_of(const BlockPermissionList *list)
{
    static const unsigned perms[] = {
        [BLOCK_PERMISSION_CONSISTENT_READ] = PERM_CONSISTENT_READ,
        [BLOCK_PERMISSION_WRITE] = PERM_WRITE,
        [BLOCK_PERMISSION_WRITE_UNCHANGED] = PERM_WRITE_UNCHANGED,
        [BLOCK_PERMISSION_RESIZE] = PERM_RESIZE,
    };
    unsigned sum = 0;

    for (size_t i = 0; list && i < list->len; i++) {
        sum |= perms[list->items[i]];
    }
    return sum;
}

static bool take_rules(BlkdebugRules *rules, const BlockdevOptionsBlkdebug *own, GError **error)
{
    if (own->config && !blkdebug_read_config(rules, own->config, error)) {
        return false;
    }
    for (size_t i = 0; own->inject_error && i < own->inject_error->len; i++) {
        blkdebug_add_error(rules, own->inject_error->items[i]);
    }
    for (size_t i = 0; own->set_state && i < own->set_state->len; i++) {
        blkdebug_add_state(rules, own->set_state->items[i]);
    }
    return true;
}

static bool open_image(BlockNode *node, const BlockdevOptionsBlkdebug *own, GError **error)
{
    BlkdebugState *blkdebug = node->state;
    BlockChild *image = node_open_child(node, own->image, "image", CHILD_FILTERED, error);

    if (!image || !check_limits(blkdebug, image->node->limits.request_alignment, error)) {
        return false;
    }
    node_set_size(node, node_size(image->node));
    return true;
}

static void blkdebug_close(BlockNode *node)
{
    BlkdebugState *blkdebug = node->state;

    blkdebug_rules_done(&blkdebug->rules);
}

static bool blkdebug_open(BlockNode *node, const BlockdevOptions *options, GError **error)
{
    const BlockdevOptionsBlkdebug *own = &options->u.blkdebug;
    BlkdebugState *blkdebug = node->state;

    blkdebug->take = perms_of(own->take_child_perms);
    blkdebug->unshare = perms_of(own->unshare_child_perms);
    if (!take_limits(blkdebug, own, error)) {
        return false;
    }
    blkdebug_rules_init(&blkdebug->rules);
    if (!take_rules(&blkdebug->rules, own, error) || !open_image(node, own, error)) {
        blkdebug_close(node);
        return false;
    }
    blkdebug_event(&blkdebug->rules, BLKDEBUG_EVENT_NONE); /* no breakpoints yet: no yield */
    return true;
}

static bool blkdebug_reopen_prepare(ReopenState *state, UndoStack *undo, GError **error)
{
    return true;
}

static void blkdebug_child_perm(BlockNode *node, BlockChild *child, unsigned perm, unsigned shared,
                                unsigned *ret_perm, unsigned *ret_shared)
{
    const BlkdebugState *blkdebug = node->state;

    *ret_perm = perm | blkdebug->take;
    *ret_shared = shared & ~blkdebug->unshare;
}

/* Without rules of its own the node has the short name that QEMU's command lines know. */
static char *blkdebug_describe(const BlockNode *node)
{
    const BlockdevOptionsBlkdebug *own = &node->options->u.blkdebug;
    const char *image = node->file->node->filename;

    if (own->inject_error || own->set_state || own->has_align || own->has_max_transfer ||
        own->has_opt_write_zero || own->has_max_write_zero || own->has_opt_discard ||
        own->has_max_discard || !image[0] || g_str_has_prefix(image, "json:")) {
        return NULL;
    }
    return g_strdup_printf("blkdebug:%s:%s", own->config ? own->config : "", image);
}

/* "blkdebug:CONFIG:IMAGE"; either may be empty. */
static BlockdevOptions *blkdebug_parse_name(const char *name, GError **error)
{
    const char *config = name + strlen("blkdebug:");
    const char *image = strchr(config, ':');
    g_autoptr(BlockdevOptions) options = g_new0(BlockdevOptions, 1);
    BlockdevOptionsBlkdebug *own = &options->u.blkdebug;

    options->driver = BLOCKDEV_DRIVER_BLKDEBUG;
    if (!image) {
        merino_error(error, "blkdebug requires both config file and image path");
        return NULL;
    }
    own->config = image > config ? g_strndup(config, image - config) : NULL;
    own->image = g_new0(BlockdevRef, 1);
    own->image->u.definition = image_file_options(image + 1, error);
    if (!own->image->u.definition) {
        g_clear_pointer(&own->image, g_free);
        return NULL;
    }
    return g_steal_pointer(&options);
}

static int64_t blkdebug_allocated_size(BlockNode *node)
{
    return -ENOTSUP;
}

/* --- requests --- */

static int coroutine_fn check(BlockNode *node, BlkdebugIOType type, int64_t offset, int64_t bytes)
{
    BlkdebugState *blkdebug = node->state;

    return blkdebug_check(&blkdebug->rules, type, offset, bytes);
}

static int coroutine_fn blkdebug_co_preadv(BlockNode *node, int64_t offset, int64_t bytes,
                                           IoVector *vec, unsigned flags)
{
    int ret = check(node, BLKDEBUG_IO_TYPE_READ, offset, bytes);

    return ret < 0 ? ret : child_co_preadv(node->file, offset, bytes, vec, flags);
}

static int coroutine_fn blkdebug_co_pwritev(BlockNode *node, int64_t offset, int64_t bytes,
                                            IoVector *vec, unsigned flags)
{
    int ret = check(node, BLKDEBUG_IO_TYPE_WRITE, offset, bytes);

    return ret < 0 ? ret : child_co_pwritev(node->file, offset, bytes, vec, flags);
}

static int coroutine_fn blkdebug_co_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                                  unsigned flags)
{
    const BlkdebugState *blkdebug = node->state;
    int64_t align = MAX(blkdebug->opt_zero, 1);
    int ret;

    if (offset % align != 0 || bytes % align != 0) {
        return -ENOTSUP;
    }
    ret = check(node, BLKDEBUG_IO_TYPE_WRITE_ZEROES, offset, bytes);
    return ret < 0 ? ret : child_co_pwrite_zeroes(node->file, offset, bytes, flags);
}

static int coroutine_fn blkdebug_co_pdiscard(BlockNode *node, int64_t offset, int64_t bytes)
{
    const BlkdebugState *blkdebug = node->state;
    int64_t align = MAX(blkdebug->opt_discard, 1);
    int64_t end = offset + bytes;
    int ret;

    offset = (offset + align - 1) / align * align;
    end = end / align * align;
    if (offset >= end) {
        return -ENOTSUP;
    }
    ret = check(node, BLKDEBUG_IO_TYPE_DISCARD, offset, end - offset);
    return ret < 0 ? ret : child_co_pdiscard(node->file, offset, end - offset);
}

static int coroutine_fn blkdebug_co_flush(BlockNode *node)
{
    int ret = check(node, BLKDEBUG_IO_TYPE_FLUSH, 0, 0);

    return ret < 0 ? ret : child_co_flush(node->file);
}

static int coroutine_fn blkdebug_co_block_status(BlockNode *node, int64_t offset, int64_t bytes,
                                                 BlockStatus *ret_status)
{
    int ret = check(node, BLKDEBUG_IO_TYPE_BLOCK_STATUS, offset, bytes);

    return ret < 0 ? ret : node_co_block_status(node->file->node, offset, bytes, ret_status);
}

static void coroutine_fn blkdebug_co_event(BlockNode *node, BlkdebugEvent event)
{
    BlkdebugState *blkdebug = node->state;

    blkdebug_event(&blkdebug->rules, event);
}

static void blkdebug_hurry_begin(BlockNode *node)
{
    BlkdebugState *blkdebug = node->state;

    blkdebug_rules_quiet(&blkdebug->rules, true);
}

static void blkdebug_hurry_end(BlockNode *node)
{
    BlkdebugState *blkdebug = node->state;

    blkdebug_rules_quiet(&blkdebug->rules, false);
}

static const char *const weak_options[] = { "take-child-perms", "unshare-child-perms", NULL };

static const BlockDriver blkdebug_driver = {
    .name = "blkdebug",
    .state_size = sizeof(BlkdebugState),
    .is_filter = true,
    .named_by_options = true,
    .weak_options = weak_options,
    .open = blkdebug_open,
    .close = blkdebug_close,
    .reopen_prepare = blkdebug_reopen_prepare,
    .child_perm = blkdebug_child_perm,
    .parse_name = blkdebug_parse_name,
    .describe = blkdebug_describe,
    .refresh_limits = blkdebug_refresh_limits,
    .co_preadv = blkdebug_co_preadv,
    .co_pwritev = blkdebug_co_pwritev,
    .co_pwrite_zeroes = blkdebug_co_pwrite_zeroes,
    .co_pdiscard = blkdebug_co_pdiscard,
    .co_flush = blkdebug_co_flush,
    .co_block_status = blkdebug_co_block_status,
    .co_debug_event = blkdebug_co_event,
    .hurry_begin = blkdebug_hurry_begin,
    .hurry_end = blkdebug_hurry_end,
    .allocated_size = blkdebug_allocated_size,
};

void blkdebug_driver_register(void)
{
    driver_register(&blkdebug_driver);
}

/* --- breakpoints --- */

static BlkdebugRules *find_rules(BlockNode *node)
{
    while (node && node->driver != &blkdebug_driver) {
        node = node->file ? node->file->node : NULL;
    }
    return node ? &((BlkdebugState *)node->state)->rules : NULL;
}

int blkdebug_break(BlockNode *node, const char *event, const char *tag)
{
    BlkdebugRules *rules = find_rules(node);
    BlkdebugEvent number;

    if (!rules) {
        return -ENOTSUP;
    }
    if (!BlkdebugEvent_parse(event, &number)) {
        return -ENOENT;
    }
    blkdebug_add_break(rules, number, tag);
    return 0;
}

int blkdebug_remove_break(BlockNode *node, const char *tag)
{
    BlkdebugRules *rules = find_rules(node);

    return rules ? blkdebug_drop_break(rules, tag) : -ENOTSUP;
}

int blkdebug_resume(BlockNode *node, const char *tag)
{
    BlkdebugRules *rules = find_rules(node);

    return rules ? blkdebug_let_go(rules, tag) : -ENOTSUP;
}

bool blkdebug_is_suspended(BlockNode *node, const char *tag)
{
    BlkdebugRules *rules = find_rules(node);

    return rules && blkdebug_holds(rules, tag);
}

/* SPDX-License-Identifier: MIT */
/* Block status: of one node, through filters, and down a chain of backing files. */
#include "io-harness.h"
#include "util/size.h"

#include <errno.h>
#include <string.h>

/*
 * A format for these tests, with a backing file that it does not
 * read from, and block status from a table of blocks.
 */
#define BLOCK 65536

typedef struct OverlayState {
    bool allocated[16], zero[16];
} OverlayState;

static int coroutine_fn overlay_block_status(BlockNode *node, int64_t offset, int64_t bytes,
                                             BlockStatus *ret_status)
{
    const OverlayState *overlay = node->state;
    int64_t index = offset / BLOCK;

    *ret_status = (BlockStatus){ .bytes = MIN((index + 1) * BLOCK - offset, bytes) };
    if (overlay->zero[index]) {
        ret_status->flags = BLOCK_STATUS_ZERO;
    } else if (overlay->allocated[index]) {
        ret_status->flags = BLOCK_STATUS_DATA;
    }
    return 0;
}

static const BlockDriver overlay_driver = {
    .name = "overlay",
    .has_layers = true,
    .state_size = sizeof(OverlayState),
    .co_block_status = overlay_block_status,
};

/* Nodes of a chain are put together by hand: no driver of the schema has a backing file. */
typedef struct Layer {
    BlockNode node;
    OverlayState state;
    BlockChild backing;
} Layer;

static void layer_init(Layer *layer, int64_t size, Layer *backing)
{
    memset(layer, 0, sizeof(*layer));
    layer->node.driver = &overlay_driver;
    layer->node.state = &layer->state;
    layer->node.size = size;
    layer->node.limits.request_alignment = 1;
    if (backing) {
        layer->backing.node = &backing->node;
        layer->node.backing = &layer->backing;
    }
}

typedef struct StatusCall {
    BlockNode *node, *base;
    bool above;
    int64_t offset, bytes;
    BlockStatus status;
    int ret;
} StatusCall;

static void coroutine_fn status_entry(void *opaque)
{
    StatusCall *call = opaque;

    call->ret = call->above
                    ? node_co_block_status_above(call->node, call->base, call->offset, call->bytes,
                                                 &call->status)
                    : node_co_block_status(call->node, call->offset, call->bytes, &call->status);
}

static BlockStatus status_of(BlockNode *node, int64_t offset, int64_t bytes)
{
    StatusCall call = { .node = node, .offset = offset, .bytes = bytes };

    coroutine_run(status_entry, &call);
    g_assert_cmpint(call.ret, ==, 0);
    return call.status;
}

static BlockStatus status_above(Layer *top, Layer *base, int64_t offset, int64_t bytes)
{
    StatusCall call = { .node = &top->node,
                        .base = base ? &base->node : NULL,
                        .above = true,
                        .offset = offset,
                        .bytes = bytes };

    coroutine_run(status_entry, &call);
    g_assert_cmpint(call.ret, ==, 0);
    return call.status;
}

#define DATA      (BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED)
#define ZERO      (BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED)
#define ZERO_ONLY BLOCK_STATUS_ZERO

static void assert_status(BlockStatus status, int flags, int64_t bytes, int depth)
{
    g_assert_cmpint(status.flags & ~(BLOCK_STATUS_EOF | BLOCK_STATUS_OFFSET_VALID), ==, flags);
    g_assert_cmpint(status.bytes, ==, bytes);
    g_assert_cmpint(status.depth, ==, depth);
}

static void test_the_layer_that_decides_is_found(void)
{
    Layer top, middle, bottom;

    layer_init(&bottom, 16 * BLOCK, NULL);
    layer_init(&middle, 16 * BLOCK, &bottom);
    layer_init(&top, 16 * BLOCK, &middle);
    top.state.allocated[0] = true;
    middle.state.zero[1] = true;
    bottom.state.allocated[1] = bottom.state.allocated[2] = true;
    assert_status(status_above(&top, NULL, 0, 16 * BLOCK), DATA, BLOCK, 0);
    assert_status(status_above(&top, NULL, BLOCK, BLOCK), ZERO, BLOCK, 1);
    assert_status(status_above(&top, NULL, 2 * BLOCK + 1, BLOCK), DATA, BLOCK - 1, 2);
    assert_status(status_above(&top, NULL, 3 * BLOCK, BLOCK), ZERO_ONLY, BLOCK, 3);
    assert_status(status_above(&top, &bottom, 2 * BLOCK, BLOCK), 0, BLOCK, 2);
    assert_status(status_above(&top, &middle, BLOCK, BLOCK), 0, BLOCK, 1);
    assert_status(status_above(&top, &middle, 0, BLOCK), DATA, BLOCK, 0);
}

static void test_a_short_backing_file_ends_in_zeroes(void)
{
    Layer top, bottom;
    BlockStatus status;

    layer_init(&bottom, 2 * BLOCK + 100, NULL);
    layer_init(&top, 16 * BLOCK, &bottom);
    bottom.state.allocated[2] = true;
    assert_status(status_above(&top, NULL, 2 * BLOCK, BLOCK), DATA, 100, 1);
    assert_status(status_above(&top, NULL, 2 * BLOCK + 100, BLOCK - 100), ZERO, BLOCK - 100, 1);
    status = status_of(&top.node, 15 * BLOCK, 5 * BLOCK);
    assert_status(status, 0, BLOCK, 0);
    g_assert_true(status.flags & BLOCK_STATUS_EOF);
    assert_status(status_of(&bottom.node, 5 * BLOCK, 7), ZERO, 7, 0);
}

static void test_answers_are_cut_to_what_was_asked(void)
{
    Layer layer;

    layer_init(&layer, 16 * BLOCK, NULL);
    layer.node.limits.request_alignment = 4096;
    layer.state.allocated[1] = true;
    assert_status(status_of(&layer.node, BLOCK + 1, 10), DATA, 10, 0);
    assert_status(status_of(&layer.node, BLOCK + 1, 4 * BLOCK), DATA, BLOCK - 1, 0);
    assert_status(status_of(&layer.node, 16 * BLOCK - 1, 1), ZERO_ONLY, 1, 0);
}

static void test_filters_and_windows_say_what_is_below(void)
{
    BlockNode *raw, *disk;
    BlockStatus status;

    disk = add_node("{'driver':'null-co','node-name':'d'}");
    memory_disk(disk)->tells_zeroes = true;
    memory_disk(disk)->data[MiB / 2] = 1;
    add_node("{'driver':'null-co','node-name':'t'}");
    add_node("{'driver':'copy-before-write','node-name':'c','file':'d','target':'t'}");
    raw = add_node("{'driver':'raw','node-name':'r','file':'c','offset':512,'size':524800}");
    status = status_of(raw, 0, MiB);
    assert_status(status, ZERO, MiB / 2 - 512, 0);
    status = status_of(raw, MiB / 2, 100);
    assert_status(status, DATA, 100, 0);
    g_assert_true(status.file == disk);
    g_assert_cmpint(status.map, ==, MiB / 2 + 512);
    status = status_of(raw, MiB / 2, MiB);
    assert_status(status, DATA, 512, 0);
    g_assert_true(status.flags & BLOCK_STATUS_EOF);
    delete_node("r");
    delete_node("c");
    delete_node("t");
    delete_node("d");
}

int main(int argc, char **argv)
{
    io_harness_init(&argc, &argv, true);
    g_test_add_func("/status/the-layer-that-decides", test_the_layer_that_decides_is_found);
    g_test_add_func("/status/short-backing-file", test_a_short_backing_file_ends_in_zeroes);
    g_test_add_func("/status/cut-to-what-was-asked", test_answers_are_cut_to_what_was_asked);
    g_test_add_func("/status/filters-and-windows", test_filters_and_windows_say_what_is_below);
    return io_harness_run();
}

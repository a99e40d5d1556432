/* SPDX-License-Identifier: MIT */
/* Metadata contexts: what block status says, and how much of it. */
#include "nbd-harness.h"
#include "util/size.h"

#include <stdio.h>
#include <string.h>

#define SIZE (4 * MiB)

static BlockNode *disk;
static MemoryDisk *memory;
static Client client;

/* Data in the block at 64 KiB; `one` is dirty at 0 and at 1 MiB, `two` nowhere. */
static void set_up(bool extended, const char *contexts)
{
    BitmapAddOptions one = { .name = "one", .granularity = 4096, .disabled = true };
    BitmapAddOptions two = { .name = "two", .granularity = 65536, .disabled = true };
    DirtyBitmap *bitmap;

    disk = add_node("{'driver':'null-co','node-name':'d','size':%" G_GINT64_FORMAT "}", SIZE);
    memory = memory_disk(disk);
    memory->tells_zeroes = true;
    memset(memory->data + 64 * KiB, 'x', 4096);
    bitmap = bitmap_add(disk->bitmaps, &one, NULL, NULL);
    bitmap_set_range(bitmap, 0, 4096);
    bitmap_set_range(bitmap, MiB, 8192);
    bitmap_add(disk->bitmaps, &two, NULL, NULL);
    start_server(0, 0);
    add_export("{'type':'nbd','id':'e','node-name':'d','bitmaps':['one','two'],"
               "'allocation-depth':true}");
    client_open(&client, true, extended);
    client_go(&client, "d", contexts);
}

static void tear_down(void)
{
    client_close(&client);
    stop_server();
    delete_node("d");
}

/* A chunk as "context: length/flags length/flags"; caller frees. */
static char *describe(const Reply *reply)
{
    const uint8_t *next = reply->data->data;
    const uint8_t *end = next + reply->data->len;
    GString *text = g_string_new(NULL);

    g_assert_cmpuint(reply->type, ==,
                     client.extended ? NBD_CHUNK_BLOCK_STATUS_EXT : NBD_CHUNK_BLOCK_STATUS);
    g_string_append_printf(text, "%u:", nbd_get32(next));
    next += client.extended ? 8 : 4;
    while (next < end) {
        if (client.extended) {
            g_string_append_printf(text, " %" G_GUINT64_FORMAT "/%" G_GUINT64_FORMAT,
                                   nbd_get64(next), nbd_get64(next + 8));
            next += 16;
        } else {
            g_string_append_printf(text, " %u/%u", nbd_get32(next), nbd_get32(next + 4));
            next += 8;
        }
    }
    return g_string_free(text, FALSE);
}

/* All chunks of the answer, joined by "; ". */
static char *collect(void)
{
    GString *text = g_string_new(NULL);
    bool done = false;

    while (!done) {
        Reply reply;

        client_reply(&client, 0, &reply);
        done = reply.flags & NBD_CHUNK_FLAG_DONE;
        if (reply.error) {
            g_string_append_printf(text, "error %u", reply.error);
        } else if (reply.data->len) {
            g_autofree char *chunk = describe(&reply);

            g_string_append_printf(text, "%s%s", text->len ? "; " : "", chunk);
        }
        reply_done(&reply);
    }
    return g_string_free(text, FALSE);
}

static char *status(uint16_t flags, uint64_t offset, uint64_t length)
{
    client_request(&client, NBD_CMD_BLOCK_STATUS, flags, 1, offset, length);
    return collect();
}

static const char all_contexts[] =
    "base:allocation qemu:allocation-depth qemu:dirty-bitmap:one qemu:dirty-bitmap:two";

static void test_all_contexts(gconstpointer extended)
{
    set_up(extended != NULL, all_contexts);
    assert_text(status(0, 0, SIZE), "0: 65536/3 4096/0 4124672/3; 1: 4194304/1; "
                                    "2: 4096/1 1044480/0 8192/1 3137536/0; 3: 4194304/0");
    tear_down();
}

/* Inside and across extents, and at odd bytes. */
static void test_parts(gconstpointer extended)
{
    set_up(extended != NULL, "base:allocation qemu:dirty-bitmap:one");
    assert_text(status(0, 65536, 1), "0: 1/0; 2: 1/0");
    assert_text(status(0, 65535, 4098), "0: 1/3 4096/0 1/3; 2: 4098/0");
    assert_text(status(0, MiB - 1, 2), "0: 2/3; 2: 1/0 1/1");
    assert_text(status(0, SIZE - 1, 1), "0: 1/3; 2: 1/0");
    tear_down();
}

static void test_one_extent(gconstpointer extended)
{
    set_up(extended != NULL, all_contexts);
    assert_text(status(NBD_CMD_FLAG_REQ_ONE, 0, SIZE),
                "0: 65536/3; 1: 4194304/1; 2: 4096/1; 3: 4194304/0");
    assert_text(status(NBD_CMD_FLAG_REQ_ONE, 65536 + 100, SIZE - 65536 - 100),
                "0: 3996/0; 1: 4128668/1; 2: 982940/0; 3: 4128668/0");
    tear_down();
}

static void test_refusals(gconstpointer extended)
{
    set_up(extended != NULL, "qemu:dirty-bitmap:two");
    assert_text(status(0, 0, 0), "error 22");
    assert_text(status(0, 0, SIZE + 1), "error 22");
    assert_text(status(0, SIZE, 1), "error 22");
    assert_text(status(0, UINT64_MAX, 1), "error 22");
    assert_text(status(NBD_CMD_FLAG_DF, 0, 1), "error 22");
    assert_text(status(0, 0, 1), "3: 1/0");
    tear_down();
}

/* A disk in very many pieces is told bit by bit, also where all of them are the same. */
static void test_many_pieces(void)
{
    const int64_t size = 160 * MiB;
    int64_t told = 0;
    int requests = 0;

    disk = add_node("{'driver':'null-co','node-name':'d','size':%" G_GINT64_FORMAT "}", size);
    memory = memory_disk(disk);
    memory->tells_zeroes = true;
    for (int64_t at = 0; at < size; at += 8 * KiB) {
        memory->data[at] = 1;
    }
    start_server(0, 0);
    add_export("{'type':'nbd','id':'e','node-name':'d','allocation-depth':true}");
    client_open(&client, true, true);
    client_go(&client, "d", "qemu:allocation-depth");
    while (told < size) {
        g_autofree char *text = status(0, (uint64_t)told, (uint64_t)(size - told));
        uint64_t length = 0;

        g_assert_cmpint(sscanf(text, "1: %" G_GUINT64_FORMAT "/1", &length), ==, 1);
        g_assert_cmpuint(length, <=, size - told);
        g_assert_cmpuint(length, >, 0);
        told += (int64_t)length;
        requests++;
    }
    g_assert_cmpint(requests, >, 1);
    tear_down();
}

/* --- a request's own choice of contexts --- */

static char *filtered_status(uint64_t offset, uint64_t length, const uint32_t *ids, unsigned n)
{
    g_autofree uint8_t *payload = g_malloc(8 + 4 * n);

    nbd_put64(payload, length);
    for (unsigned i = 0; i < n; i++) {
        nbd_put32(payload + 8 + 4 * i, ids[i]);
    }
    client_request(&client, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN, 1, offset, 8 + 4 * n);
    client_send(&client, payload, 8 + 4 * n);
    return collect();
}

static void test_filter(void)
{
    const uint32_t wanted[] = { 3, 0 }, twice[] = { 0, 0 }, unknown[] = { 0, 9 }, not_set[] = { 1 };
    const uint32_t too_many[] = { 0, 2, 3, 0 };

    set_up(true, "base:allocation qemu:dirty-bitmap:one qemu:dirty-bitmap:two");
    assert_text(filtered_status(0, SIZE, wanted, 2), "3: 4194304/0; 0: 65536/3 4096/0 4124672/3");
    assert_text(filtered_status(0, SIZE, wanted, 1), "3: 4194304/0");
    assert_text(filtered_status(0, SIZE, twice, 2), "error 22");
    assert_text(filtered_status(0, SIZE, unknown, 2), "error 22");
    assert_text(filtered_status(0, SIZE, not_set, 1), "error 22");
    assert_text(filtered_status(0, SIZE, too_many, 4), "error 22");
    assert_text(filtered_status(0, SIZE, wanted, 0), "error 22");
    assert_text(filtered_status(0, 0, wanted, 1), "error 22");
    assert_text(filtered_status(1, SIZE, wanted, 1), "error 22");
    assert_text(filtered_status(0, UINT64_MAX, wanted, 1), "error 22");
    assert_text(status(NBD_CMD_FLAG_REQ_ONE, 0, 1), "0: 1/3; 2: 1/1; 3: 1/0");
    tear_down();
}

/* --- more extents than one reply has --- */

/* Every other block is dirty. */
static void add_striped_bitmap(BlockNode *node, const char *name)
{
    BitmapAddOptions options = { .name = name, .granularity = 512, .disabled = true };
    DirtyBitmap *bitmap = bitmap_add(node->bitmaps, &options, NULL, NULL);

    for (int64_t offset = 0; offset < node_size(node); offset += 1024) {
        bitmap_set_range(bitmap, offset, 512);
    }
}

static void test_as_many_as_fit(gconstpointer extended)
{
    const int64_t size = GiB;
    unsigned max = NBD_EXTENTS_BYTES / (extended ? NBD_EXTENT_EXT_BYTES : NBD_EXTENT_BYTES);
    BlockNode *node =
        add_node("{'driver':'null-co','node-name':'d','size':%" G_GINT64_FORMAT "}", size);
    Reply reply;

    add_striped_bitmap(node, "b");
    start_server(0, 0);
    add_export("{'type':'nbd','id':'e','node-name':'d','bitmaps':['b']}");
    client_open(&client, true, extended != NULL);
    client_go(&client, "d", "qemu:dirty-bitmap:b");
    client_request(&client, NBD_CMD_BLOCK_STATUS, 0, 1, 0, (uint64_t)size);
    client_reply(&client, 0, &reply);
    g_assert_cmpuint(reply.data->len, ==, NBD_EXTENTS_BYTES + (extended ? 8 : 4));
    if (extended) {
        g_assert_cmpuint(nbd_get32(reply.data->data + 4), ==, max);
    }
    reply_done(&reply);
    tear_down();
}

/* What a client's requests may hold is for all contexts of one, too. */
static void test_memory_of_all_contexts(void)
{
    NbdServerOptions options = { .has_max_request_memory = true, .max_request_memory = MiB };
    BlockNode *node = add_node("{'driver':'null-co','node-name':'d','size':268435456}");
    size_t bytes = 0;

    add_striped_bitmap(node, "a");
    add_striped_bitmap(node, "b");
    start_server_with(&options);
    add_export("{'type':'nbd','id':'e','node-name':'d','bitmaps':['a','b']}");
    client_open(&client, true, true);
    client_go(&client, "d", "qemu:dirty-bitmap:a qemu:dirty-bitmap:b");
    client_request(&client, NBD_CMD_BLOCK_STATUS, 0, 1, 0, 256 * MiB);
    for (int i = 0; i < 2; i++) {
        Reply reply;

        client_reply(&client, 0, &reply);
        bytes += reply.data->len - NBD_BLOCK_STATUS_EXT_BYTES;
        reply_done(&reply);
    }
    g_assert_cmpuint(bytes, ==, MiB);
    tear_down();
}

/* Lengths beyond 32 bits, in one extent. */
static void test_longer_than_32_bits(void)
{
    const int64_t size = 5 * GiB;
    BitmapAddOptions options = { .name = "b", .granularity = 65536, .disabled = true };
    BlockNode *node =
        add_node("{'driver':'null-co','node-name':'d','size':%" G_GINT64_FORMAT "}", size);

    bitmap_add(node->bitmaps, &options, NULL, NULL);
    start_server(0, 0);
    add_export("{'type':'nbd','id':'e','node-name':'d','bitmaps':['b']}");
    client_open(&client, true, true);
    client_go(&client, "d", "qemu:dirty-bitmap:b");
    assert_text(status(0, 0, (uint64_t)size), "2: 5368709120/0");
    tear_down();
}

/* --- bitmaps of the export --- */

#define EXPORT_BITMAPS(list)                                                                       \
    "{'type':'nbd','id':'x','node-name':'d','name':'x','bitmaps':[" list "]}"

static void test_bitmap_refusals(void)
{
    BitmapAddOptions live = { .name = "live", .granularity = 4096 };

    set_up(false, NULL);
    bitmap_add(disk->bitmaps, &live, NULL, NULL);
    assert_text(add_export_error(EXPORT_BITMAPS("'one'")),
                "Bitmap 'one' is currently in use by another operation and cannot be used");
    assert_text(add_export_error(EXPORT_BITMAPS("'nope'")), "Bitmap 'nope' is not found");
    assert_text(add_export_error(EXPORT_BITMAPS("{'node':'nope','name':'one'}")),
                "Node 'nope' not found");
    assert_text(add_export_error(EXPORT_BITMAPS("{'node':'d','name':'nope'}")),
                "Dirty bitmap 'nope' not found");
    assert_text(add_export_error(EXPORT_BITMAPS("'live'")),
                "Enabled bitmap 'live' incompatible with readonly export");
    g_assert_false(bitmap_is_busy(bitmap_find(disk->bitmaps, "live")));
    tear_down();
}

/* An export that sees the disk through filters has the disk's bitmaps, and holds them. */
static void test_bitmaps_of_the_filtered_node(void)
{
    BitmapAddOptions options = { .name = "b", .granularity = 4096, .disabled = true };
    BlockNode *node = add_node("{'driver':'null-co','node-name':'d'}");
    DirtyBitmap *bitmap = bitmap_add(node->bitmaps, &options, NULL, NULL);

    add_node("{'driver':'null-co','node-name':'t'}");
    add_node("{'driver':'copy-before-write','node-name':'cbw','file':'d','target':'t'}");
    start_server(0, 0);
    add_export("{'type':'nbd','id':'e','node-name':'cbw','bitmaps':['b','b',"
               "{'node':'d','name':'b'}]}");
    g_assert_true(bitmap_is_busy(bitmap));
    g_assert_null(delete_export_error("e", BLOCK_EXPORT_REMOVE_MODE_SAFE));
    g_assert_false(bitmap_is_busy(bitmap));
    stop_server();
    delete_node("cbw");
    delete_node("t");
    delete_node("d");
}

/* A live bitmap on a writable export tells of writes as soon as they are answered. */
static void test_live_bitmap(void)
{
    BitmapAddOptions options = { .name = "b", .granularity = 4096 };
    BlockNode *node = add_node("{'driver':'null-co','node-name':'d','size':65536}");
    char byte = 1;

    bitmap_add(node->bitmaps, &options, NULL, NULL);
    start_server(0, 0);
    add_export("{'type':'nbd','id':'e','node-name':'d','bitmaps':['b'],'writable':true}");
    client_open(&client, true, false);
    client_go(&client, "d", "qemu:dirty-bitmap:b");
    assert_text(status(0, 0, 65536), "2: 65536/0");
    g_assert_cmpuint(client_do(&client, NBD_CMD_WRITE, 0, 5000, 1, &byte), ==, 0);
    assert_text(status(0, 0, 65536), "2: 4096/0 4096/1 57344/0");
    g_assert_cmpuint(client_do(&client, NBD_CMD_WRITE_ZEROES, 0, 0, 65536, NULL), ==, 0);
    assert_text(status(0, 0, 65536), "2: 65536/1");
    tear_down();
}

typedef struct Growth {
    BlockBackend *user;
    int64_t offset;
} Growth;

/* As a format does it. */
static void coroutine_fn grow_file(void *opaque)
{
    const Growth *growth = opaque;
    char bytes[4096] = { 1 };

    backend_co_enter(growth->user);
    g_assert_cmpint(
        child_co_pwrite(backend_root(growth->user), growth->offset, sizeof(bytes), bytes, 0), ==,
        0);
    backend_leave(growth->user);
}

/* The bitmap is of a file that is no part of the export, and that grows while it is looked at. */
static void test_bitmap_of_a_growing_node(void)
{
    BitmapAddOptions options = { .name = "b", .granularity = 4096 };
    g_autofree char *path = temp_file("grows", 4096);
    BlockNode *file = add_node("{'driver':'file','node-name':'f','filename':'%s'}", path);
    BlockBackend *writer = open_user(file, PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE);

    disk = add_node("{'driver':'null-co','node-name':'d','size':%" G_GINT64_FORMAT "}", SIZE);
    bitmap_add(file->bitmaps, &options, NULL, NULL);
    start_server(0, 0);
    add_export("{'type':'nbd','id':'e','node-name':'d','writable':true,'iothread':'io',"
               "'bitmaps':[{'node':'f','name':'b'}]}");
    client_open(&client, true, true);
    client_go(&client, "d", "qemu:dirty-bitmap:b");
    for (int i = 1; i <= 200; i++) {
        Growth growth = { writer, i * 4096 };

        client_request(&client, NBD_CMD_BLOCK_STATUS, 0, 1, 0, SIZE);
        coroutine_run(grow_file, &growth);
        run_main_until(bitmap_list_size(file->bitmaps) == growth.offset + 4096);
        g_free(collect());
    }
    assert_text(status(0, 0, SIZE), "2: 4096/0 819200/1 3371008/0");
    backend_free(writer);
    tear_down();
    delete_node("f");
}

static void add_in_both_forms(const char *name, GTestDataFunc fn)
{
    g_autofree char *compact = g_strdup_printf("/nbd-block-status/%s/structured", name);
    g_autofree char *extended = g_strdup_printf("/nbd-block-status/%s/extended", name);

    g_test_add_data_func(compact, NULL, fn);
    g_test_add_data_func(extended, "", fn);
}

int main(int argc, char **argv)
{
    nbd_harness_init(&argc, &argv);
    add_in_both_forms("all-contexts", test_all_contexts);
    add_in_both_forms("parts", test_parts);
    add_in_both_forms("one-extent", test_one_extent);
    add_in_both_forms("refusals", test_refusals);
    g_test_add_func("/nbd-block-status/filter", test_filter);
    add_in_both_forms("as-many-as-fit", test_as_many_as_fit);
    g_test_add_func("/nbd-block-status/many-pieces", test_many_pieces);
    g_test_add_func("/nbd-block-status/memory", test_memory_of_all_contexts);
    g_test_add_func("/nbd-block-status/longer-than-32-bits", test_longer_than_32_bits);
    g_test_add_func("/nbd-block-status/bitmap-refusals", test_bitmap_refusals);
    g_test_add_func("/nbd-block-status/filtered-node", test_bitmaps_of_the_filtered_node);
    g_test_add_func("/nbd-block-status/live-bitmap", test_live_bitmap);
    g_test_add_func("/nbd-block-status/growing-node", test_bitmap_of_a_growing_node);
    return nbd_harness_run();
}

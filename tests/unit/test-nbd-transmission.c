/* SPDX-License-Identifier: MIT */
/* What each command does and how it is answered, in the three forms of replies. */
#include "nbd-harness.h"
#include "util/size.h"

#include <errno.h>
#include <string.h>

#define SIZE (4 * MiB)

typedef struct Form {
    bool structured;
    bool extended;
} Form;

static const Form forms[] = { { false, false }, { true, false }, { true, true } };

static BlockNode *disk;
static MemoryDisk *memory;
static Client client;

static void set_up(const Form *form, const char *options, const char *contexts)
{
    disk = add_node("{'driver':'null-co','node-name':'d','discard':'unmap',"
                    "'size':%" G_GINT64_FORMAT "}",
                    SIZE);
    memory = memory_disk(disk);
    start_server(0, 0);
    add_export("{'type':'nbd','id':'e','node-name':'d'%s}", options);
    client_open(&client, form->structured, form->extended);
    client_go(&client, "d", contexts);
}

static void tear_down(void)
{
    client_close(&client);
    stop_server();
    delete_node("d");
}

#define WRITABLE ",'writable':true"

/* --- reads and writes --- */

static void test_data_goes_round(gconstpointer form)
{
    g_autofree char *data = g_malloc(MiB), *back = g_malloc(MiB);

    set_up(form, WRITABLE, NULL);
    memset(data, 'a', MiB);
    for (uint64_t bytes = 1; bytes <= MiB; bytes = bytes * 3 + 1) {
        g_assert_cmpuint(client_do(&client, NBD_CMD_WRITE, 0, 5 + bytes, bytes, data), ==, 0);
        memset(back, 0, bytes);
        client_read(&client, 0, 5 + bytes, bytes, back);
        g_assert_cmpmem(back, bytes, data, bytes);
    }
    tear_down();
}

/* Simple: data. Structured: one piece with its offset; a hole when there are only zeroes. */
static void test_short_read_replies(gconstpointer opaque)
{
    const Form *form = opaque;
    Reply reply;

    set_up(form, WRITABLE, NULL);
    memset(memory->data + 4096, 'x', 512);
    client_request(&client, NBD_CMD_READ, 0, 1, 4096, 512);
    client_reply(&client, 512, &reply);
    g_assert_cmpint(reply.chunk, ==, form->structured);
    if (form->structured) {
        g_assert_cmpuint(reply.type, ==, NBD_CHUNK_OFFSET_DATA);
        g_assert_cmpuint(reply.flags, ==, NBD_CHUNK_FLAG_DONE);
        g_assert_cmpuint(reply.data->len, ==, 8 + 512);
        g_assert_cmpuint(nbd_get64(reply.data->data), ==, 4096);
        g_assert_cmpuint(reply.offset, ==, form->extended ? 4096 : 0);
    }
    reply_done(&reply);
    client_request(&client, NBD_CMD_READ, 0, 1, 8192, 512);
    client_reply(&client, 512, &reply);
    if (form->structured) {
        g_assert_cmpuint(reply.type, ==, NBD_CHUNK_OFFSET_HOLE);
        g_assert_cmpuint(reply.data->len, ==, 12);
        g_assert_cmpuint(nbd_get32(reply.data->data + 8), ==, 512);
    }
    reply_done(&reply);
    tear_down();
}

/* Pieces: hole, data, hole; or one of data when the client does not want pieces. */
static void test_sparse_read(void)
{
    const uint16_t types[] = { NBD_CHUNK_OFFSET_HOLE, NBD_CHUNK_OFFSET_DATA,
                               NBD_CHUNK_OFFSET_HOLE };
    g_autofree char *back = g_malloc(MiB);
    Reply reply;

    set_up(&forms[1], WRITABLE, NULL);
    memory->tells_zeroes = true;
    memset(memory->data + 64 * KiB, 'x', 8 * KiB);
    client_request(&client, NBD_CMD_READ, 0, 1, 0, MiB);
    for (int i = 0; i < 3; i++) {
        client_reply(&client, 0, &reply);
        g_assert_cmpuint(reply.type, ==, types[i]);
        g_assert_cmpuint(reply.flags, ==, i == 2 ? NBD_CHUNK_FLAG_DONE : 0);
        reply_done(&reply);
    }
    g_assert_cmpint(atomic_load(&memory->last_bytes), ==, 8 * KiB);
    client_request(&client, NBD_CMD_READ, NBD_CMD_FLAG_DF, 1, 0, MiB);
    client_reply(&client, 0, &reply);
    g_assert_cmpuint(reply.type, ==, NBD_CHUNK_OFFSET_DATA);
    g_assert_cmpuint(reply.data->len, ==, 8 + MiB);
    reply_done(&reply);
    client_read(&client, 0, 0, MiB, back);
    g_assert_cmpmem(back, MiB, memory->data, MiB);
    tear_down();
}

/* More pieces than one reply has: the bytes are still right. */
static void test_very_sparse_read(void)
{
    g_autofree char *back = g_malloc(SIZE);

    set_up(&forms[1], WRITABLE, NULL);
    memory->tells_zeroes = true;
    for (int64_t block = 0; block < SIZE / MEMORY_DISK_BLOCK; block += 2) {
        memset(memory->data + block * MEMORY_DISK_BLOCK, (int)(block % 255 + 1), 100);
    }
    client_read(&client, 0, 1000, SIZE - 1000, back);
    g_assert_cmpmem(back, SIZE - 1000, memory->data + 1000, SIZE - 1000);
    tear_down();
}

static void test_largest(gconstpointer form)
{
    g_autofree char *data = g_malloc(NBD_MAX_PAYLOAD);

    disk = add_node("{'driver':'null-co','node-name':'d','size':%d}", NBD_MAX_PAYLOAD + 4096);
    memory = memory_disk(disk);
    start_server(0, 0);
    add_export("{'type':'nbd','id':'e','node-name':'d','writable':true}");
    client_open(&client, ((const Form *)form)->structured, ((const Form *)form)->extended);
    client_go(&client, "d", NULL);
    memset(data, 'l', NBD_MAX_PAYLOAD);
    g_assert_cmpuint(client_do(&client, NBD_CMD_WRITE, 0, 7, NBD_MAX_PAYLOAD, data), ==, 0);
    memset(data, 0, NBD_MAX_PAYLOAD);
    client_read(&client, 0, 7, NBD_MAX_PAYLOAD, data);
    g_assert_cmpmem(data, NBD_MAX_PAYLOAD, memory->data + 7, NBD_MAX_PAYLOAD);
    g_assert_cmpuint(client_do(&client, NBD_CMD_READ, 0, 0, NBD_MAX_PAYLOAD + 1, NULL), ==,
                     NBD_EINVAL);
    g_assert_cmpuint(client_do(&client, NBD_CMD_CACHE, 0, 0, NBD_MAX_PAYLOAD + 1, NULL), ==,
                     NBD_EINVAL);
    /* What would follow is not waited for. */
    g_assert_cmpuint(client_do(&client, NBD_CMD_WRITE, 0, 0, NBD_MAX_PAYLOAD + 1, NULL), ==,
                     NBD_EINVAL);
    g_assert_true(at_end(&client));
    tear_down();
}

/* --- what is refused --- */

static void test_refusals(gconstpointer opaque)
{
    const Form *form = opaque;
    char payload[64] = { 0 }, byte;

    set_up(form, WRITABLE, NULL);
    g_assert_cmpuint(client_do(&client, 99, 0, 0, 0, NULL), ==, NBD_EINVAL);
    g_assert_cmpuint(client_do(&client, NBD_CMD_READ, 0x8000, 0, 1, NULL), ==, NBD_EINVAL);
    g_assert_cmpuint(client_do(&client, NBD_CMD_READ, 0, SIZE, 1, NULL), ==, NBD_EINVAL);
    g_assert_cmpuint(client_do(&client, NBD_CMD_READ, 0, UINT64_MAX, 1, NULL), ==, NBD_EINVAL);
    g_assert_cmpuint(client_do(&client, NBD_CMD_READ, 0, INT64_MAX, 4096, NULL), ==, NBD_EINVAL);
    g_assert_cmpuint(client_do(&client, NBD_CMD_WRITE, 0, SIZE - 1, 64, payload), ==, NBD_ENOSPC);
    g_assert_cmpuint(client_do(&client, NBD_CMD_WRITE, NBD_CMD_FLAG_DF, 0, 64, payload), ==,
                     NBD_EINVAL);
    g_assert_cmpuint(client_do(&client, NBD_CMD_WRITE_ZEROES, 0, SIZE - 1, 64, NULL), ==,
                     NBD_ENOSPC);
    g_assert_cmpuint(client_do(&client, NBD_CMD_TRIM, 0, SIZE - 1, 64, NULL), ==, NBD_EINVAL);
    g_assert_cmpuint(client_do(&client, NBD_CMD_BLOCK_STATUS, 0, 0, 64, NULL), ==, NBD_EINVAL);
    if (!form->structured) {
        g_assert_cmpuint(client_do(&client, NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 1, NULL), ==,
                         NBD_EINVAL);
    }
    /* The stream has not lost its way. */
    client_read(&client, 0, 0, 1, &byte);
    g_assert_cmpint(atomic_load(&memory->writes), ==, 0);
    g_assert_cmpint(atomic_load(&memory->zeroes), ==, 0);
    tear_down();
}

static void test_read_only(gconstpointer form)
{
    char payload[64] = { 0 };

    set_up(form, "", NULL);
    g_assert_cmpuint(client_do(&client, NBD_CMD_WRITE, 0, 0, 64, payload), ==, NBD_EPERM);
    g_assert_cmpuint(client_do(&client, NBD_CMD_WRITE_ZEROES, 0, 0, 64, NULL), ==, NBD_EPERM);
    g_assert_cmpuint(client_do(&client, NBD_CMD_TRIM, 0, 0, 64, NULL), ==, NBD_EPERM);
    g_assert_cmpuint(client_do(&client, NBD_CMD_FLUSH, 0, 0, 0, NULL), ==, 0);
    tear_down();
}

static void test_nothing_asked(gconstpointer form)
{
    set_up(form, WRITABLE, NULL);
    g_assert_cmpuint(client_do(&client, NBD_CMD_READ, 0, 4096, 0, NULL), ==, 0);
    g_assert_cmpuint(client_do(&client, NBD_CMD_WRITE, 0, 4096, 0, NULL), ==, 0);
    g_assert_cmpuint(client_do(&client, NBD_CMD_TRIM, 0, 4096, 0, NULL), ==, 0);
    g_assert_cmpuint(client_do(&client, NBD_CMD_CACHE, 0, 4096, 0, NULL), ==, 0);
    g_assert_cmpuint(client_do(&client, NBD_CMD_WRITE_ZEROES, 0, 4096, 0, NULL), ==, 0);
    g_assert_cmpint(atomic_load(&memory->reads), ==, 0);
    g_assert_cmpint(atomic_load(&memory->writes), ==, 0);
    tear_down();
}

/* --- the other commands --- */

static void test_zeroes_and_trim(gconstpointer form)
{
    char block[8192], back[4096];

    set_up(form, WRITABLE, NULL);
    memset(block, 'z', sizeof(block));
    g_assert_cmpuint(client_do(&client, NBD_CMD_WRITE, 0, 0, sizeof(block), block), ==, 0);
    g_assert_cmpuint(client_do(&client, NBD_CMD_WRITE_ZEROES, 0, 0, 4096, NULL), ==, 0);
    g_assert_true(atomic_load(&memory->last_flags) & REQ_MAY_UNMAP);
    client_read(&client, 0, 0, 4096, back);
    g_assert_true(buffer_is_zero(back, sizeof(back)));
    client_do(&client, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE, 0, 4096, NULL);
    g_assert_false(atomic_load(&memory->last_flags) & REQ_MAY_UNMAP);
    client_read(&client, 0, 4096, 4096, back);
    g_assert_cmpmem(back, sizeof(back), block, sizeof(back));
    g_assert_cmpuint(client_do(&client, NBD_CMD_TRIM, 0, 4096, 4096, NULL), ==, 0);
    tear_down();
}

static void test_fast_zero(gconstpointer form)
{
    set_up(form, WRITABLE, NULL);
    g_assert_cmpuint(
        client_do(&client, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 0, 4096, NULL), ==, 0);
    atomic_store(&memory->refuse_zeroes, 1);
    g_assert_cmpuint(
        client_do(&client, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 0, 4096, NULL), ==,
        NBD_ENOTSUP);
    g_assert_cmpuint(client_do(&client, NBD_CMD_WRITE_ZEROES, 0, 0, 4096, NULL), ==, 0);
    tear_down();
}

/* Durable: each kind of change is on storage before it is answered. */
static void check_durable(uint16_t flags)
{
    char block[512] = { 1 };
    int before = atomic_load(&memory->flushes);

    g_assert_cmpuint(client_do(&client, NBD_CMD_WRITE, flags, 0, sizeof(block), block), ==, 0);
    g_assert_cmpint(atomic_load(&memory->flushes), ==, before + 1);
    client_do(&client, NBD_CMD_WRITE_ZEROES, flags, 0, 4096, NULL);
    g_assert_cmpint(atomic_load(&memory->flushes), ==, before + 2);
    client_do(&client, NBD_CMD_WRITE, 0, 0, sizeof(block), block);
    client_do(&client, NBD_CMD_TRIM, flags, 0, 4096, NULL);
    g_assert_cmpint(atomic_load(&memory->flushes), >, before + 2);
}

static void test_fua(gconstpointer form)
{
    set_up(form, WRITABLE, NULL);
    check_durable(NBD_CMD_FLAG_FUA);
    tear_down();
}

static void test_writethrough(gconstpointer form)
{
    set_up(form, WRITABLE ",'writethrough':true", NULL);
    check_durable(0);
    tear_down();
}

static void test_flush_and_cache(gconstpointer form)
{
    char block[512] = { 1 };

    set_up(form, WRITABLE, NULL);
    client_do(&client, NBD_CMD_WRITE, 0, 0, sizeof(block), block);
    g_assert_cmpuint(client_do(&client, NBD_CMD_FLUSH, 0, 5, 6, NULL), ==, 0);
    g_assert_cmpint(atomic_load(&memory->flushes), ==, 1);
    g_assert_cmpuint(client_do(&client, NBD_CMD_CACHE, 0, 0, MiB, NULL), ==, 0);
    tear_down();
}

/* --- failing storage --- */

static void test_storage_fails(gconstpointer form)
{
    char block[4096] = { 1 };

    set_up(form, WRITABLE, NULL);
    atomic_store(&memory->fail_writes, ENOSPC);
    g_assert_cmpuint(client_do(&client, NBD_CMD_WRITE, 0, 0, sizeof(block), block), ==, NBD_ENOSPC);
    g_assert_cmpuint(client_do(&client, NBD_CMD_WRITE_ZEROES, 0, 0, 4096, NULL), ==, NBD_ENOSPC);
    atomic_store(&memory->fail_reads, EIO);
    g_assert_cmpuint(client_do(&client, NBD_CMD_READ, 0, 0, 4096, NULL), ==, NBD_EIO);
    tear_down();
}

/* The words and the place of a failed read. */
static void test_error_chunks(void)
{
    Reply reply;

    set_up(&forms[1], WRITABLE, NULL);
    memory->tells_zeroes = true;
    memset(memory->data + 64 * KiB, 'x', 8 * KiB);
    atomic_store(&memory->fail_reads, EIO);
    client_request(&client, NBD_CMD_READ, 0, 1, 0, MiB);
    client_reply(&client, 0, &reply);
    g_assert_cmpuint(reply.type, ==, NBD_CHUNK_ERROR_OFFSET);
    g_assert_cmpuint(reply.error, ==, NBD_EIO);
    g_assert_cmpuint(nbd_get16(reply.data->data + 4), ==, strlen("reading from file failed"));
    g_assert_cmpmem(reply.data->data + 6, 24, "reading from file failed", 24);
    g_assert_cmpuint(nbd_get64(reply.data->data + 30), ==, 64 * KiB);
    g_assert_cmpuint(reply.data->len, ==, 38);
    reply_done(&reply);

    client_request(&client, NBD_CMD_READ, 0, 1, SIZE, 1);
    client_reply(&client, 0, &reply);
    g_assert_cmpuint(reply.type, ==, NBD_CHUNK_ERROR);
    g_assert_cmpmem(reply.data->data + 6, reply.data->len - 6,
                    "operation past EOF; From: 4194304, Len: 1, Size: 4194304", 56);
    reply_done(&reply);
    tear_down();
}

/* --- the end --- */

/* What came before is answered, what comes after is not looked at. */
static void test_disconnect(gconstpointer form)
{
    Reply reply;

    set_up(form, WRITABLE, NULL);
    client_request(&client, NBD_CMD_FLUSH, 0, 1, 0, 0);
    client_request(&client, NBD_CMD_DISC, 0, 2, 0, 0);
    client_request(&client, NBD_CMD_FLUSH, 0, 3, 0, 0);
    client_reply(&client, 0, &reply);
    g_assert_cmpuint(reply.cookie, ==, 1);
    reply_done(&reply);
    g_assert_true(at_end(&client));
    tear_down();
}

/* Requests one at a time, then many at once, and so on: the server receives differently. */
static void ask_one_by_one(unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        g_assert_cmpuint(client_do(&client, NBD_CMD_FLUSH, 0, 0, 0, NULL), ==, 0);
    }
}

static void ask_all_at_once(unsigned n)
{
    uint8_t bytes[NBD_EXTENDED_REQUEST_BYTES * 16];
    Reply reply;

    for (unsigned i = 0; i < n; i += 16) {
        size_t length = 0;

        for (unsigned k = 0; k < 16; k++) {
            length += request_header(&client, bytes + length, NBD_CMD_FLUSH, 0, i + k, 0, 0);
        }
        client_send(&client, bytes, length);
        for (unsigned k = 0; k < 16; k++) {
            client_reply(&client, 0, &reply);
            g_assert_cmpuint(reply.cookie, ==, i + k);
            reply_done(&reply);
        }
    }
}

static void test_changing_manners(gconstpointer form)
{
    set_up(form, WRITABLE, NULL);
    ask_one_by_one(70);
    ask_all_at_once(16 * 20);
    ask_one_by_one(70);
    ask_all_at_once(16);
    ask_one_by_one(10);
    tear_down();
}

/* A client that is watched goes, or is shut out. */
static void test_gone_while_watched(gconstpointer form)
{
    set_up(form, WRITABLE ",'iothread':'io'", NULL);
    ask_one_by_one(70);
    client_close(&client);
    client_open(&client, ((const Form *)form)->structured, ((const Form *)form)->extended);
    client_go(&client, "d", NULL);
    ask_one_by_one(70);
    g_assert_null(delete_export_error("e", BLOCK_EXPORT_REMOVE_MODE_HARD));
    g_assert_true(at_end(&client));
    tear_down();
}

static void test_wrong_magic(gconstpointer form)
{
    char garbage[64];

    set_up(form, WRITABLE, NULL);
    memset(garbage, 'g', sizeof(garbage));
    client_send(&client, garbage, sizeof(garbage));
    g_assert_true(at_end(&client));
    tear_down();
}

static void add_in_all_forms(const char *name, GTestDataFunc fn)
{
    static const char *const names[] = { "simple", "structured", "extended" };

    for (size_t i = 0; i < G_N_ELEMENTS(forms); i++) {
        g_autofree char *path = g_strdup_printf("/nbd-transmission/%s/%s", name, names[i]);

        g_test_add_data_func(path, &forms[i], fn);
    }
}

int main(int argc, char **argv)
{
    nbd_harness_init(&argc, &argv);
    add_in_all_forms("data-goes-round", test_data_goes_round);
    add_in_all_forms("short-read-replies", test_short_read_replies);
    g_test_add_func("/nbd-transmission/sparse-read", test_sparse_read);
    g_test_add_func("/nbd-transmission/very-sparse-read", test_very_sparse_read);
    add_in_all_forms("largest", test_largest);
    add_in_all_forms("refusals", test_refusals);
    add_in_all_forms("read-only", test_read_only);
    add_in_all_forms("nothing-asked", test_nothing_asked);
    add_in_all_forms("zeroes-and-trim", test_zeroes_and_trim);
    add_in_all_forms("fast-zero", test_fast_zero);
    add_in_all_forms("fua", test_fua);
    add_in_all_forms("writethrough", test_writethrough);
    add_in_all_forms("flush-and-cache", test_flush_and_cache);
    add_in_all_forms("storage-fails", test_storage_fails);
    g_test_add_func("/nbd-transmission/error-chunks", test_error_chunks);
    add_in_all_forms("disconnect", test_disconnect);
    add_in_all_forms("changing-manners", test_changing_manners);
    add_in_all_forms("gone-while-watched", test_gone_while_watched);
    add_in_all_forms("wrong-magic", test_wrong_magic);
    return nbd_harness_run();
}

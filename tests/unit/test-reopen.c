/* SPDX-License-Identifier: MIT */
/* blockdev-reopen: all or nothing, in QEMU's words. */
#include "graph-drivers.h"
#include "util/error.h"
#include "util/event-loop.h"
#include "util/size.h"

#define DISK "{'driver':'null-co','node-name':'%s'}"
#define RAW  "{'driver':'raw','node-name':'%s','file':'%s'}"
#define CBW  "{'driver':'copy-before-write','node-name':'%s','file':'%s','target':'%s'}"

static void reopen_ok(const char *text)
{
    GError *error = NULL;

    reopen(&error, "%s", text);
    g_assert_no_error(error);
}

static void reopen_fails(const char *text, const char *message)
{
    GError *error = NULL;

    g_assert_false(reopen(&error, "%s", text));
    assert_error(error, message);
}

static BlockBackend *attach(BlockNode *node, unsigned perm)
{
    BlockBackend *backend = backend_new("an unnamed block device", perm, PERM_ALL);
    GError *error = NULL;

    backend_attach(backend, node, &error);
    g_assert_no_error(error);
    return backend;
}

static void test_words_of_refusals(void)
{
    add_node("{'driver':'null-co','node-name':'d','size':4096}");
    add_node(DISK, "t");
    add_node(RAW, "r", "d");
    add_node(CBW, "c", "d", "t");
    reopen_ok("[]");
    reopen_fails("[{'driver':'raw','file':'d'}]", "node-name not specified");
    reopen_fails("[{'driver':'raw','file':'d','node-name':'x'}]",
                 "Failed to find node with node-name='x'");
    reopen_fails("[{'driver':'null-co','node-name':'r'}]", "Cannot change the option 'driver'");
    reopen_fails("[{'driver':'null-co','node-name':'d'}]",
                 "Option 'size' cannot be reset to its default value");
    reopen_fails("[{'driver':'null-co','node-name':'d','size':512}]",
                 "Cannot change the option 'size'");
    reopen_fails("[{'driver':'null-co','node-name':'d','size':4096,'read-zeroes':true}]",
                 "Cannot change the option 'read-zeroes'");
    reopen_fails("[{'driver':'null-co','node-name':'d','size':4096,'read-only':true,"
                 "'force-share':true}]",
                 "Cannot change the option 'force-share'");
    reopen_fails("[{'driver':'null-co','node-name':'d','size':4096,'force-share':true}]",
                 "Cannot change the option 'force-share'");
    add_node("{'driver':'null-co','node-name':'f','read-only':true,'force-share':true}");
    reopen_ok("[{'driver':'null-co','node-name':'f','read-only':true,'force-share':true}]");
    reopen_fails("[{'driver':'null-co','node-name':'f','force-share':true}]",
                 "force-share=on can only be used with read-only images");
    reopen_fails("[{'driver':'raw','node-name':'r','file':'x'}]",
                 "Cannot find device='' nor node-name='x'");
    reopen_fails("[{'driver':'raw','node-name':'r','file':'r'}]",
                 "Making 'r' a file child of 'r' would create a cycle");
    reopen_fails("[{'driver':'raw','node-name':'r','file':{'driver':'null-co'}}]",
                 "Cannot change the option 'file.driver'");
    reopen_fails("[{'driver':'copy-before-write','node-name':'c','file':'d','target':'t'}]",
                 "Block format 'copy-before-write' used by node 'c' does not support reopening "
                 "files");
    reopen_fails("[{'driver':'raw','node-name':'r','file':'d','detect-zeroes':'unmap'}]",
                 "setting detect-zeroes to unmap is not allowed without setting discard operation "
                 "to unmap");
    delete_all();
}

static void test_options_left_out_are_reset(void)
{
    BlockNode *disk = add_node("{'driver':'null-co','node-name':'d','read-only':true,"
                               "'discard':'unmap','detect-zeroes':'on','cache':{'direct':true}}");

    reopen_ok("[{'driver':'null-co','node-name':'d','cache':{'no-flush':true}}]");
    g_assert_false(disk->read_only || disk->discard_unmap || disk->cache_direct);
    g_assert_true(disk->cache_no_flush);
    g_assert_cmpint(disk->detect_zeroes, ==, BLOCKDEV_DETECT_ZEROES_OPTIONS_OFF);
    reopen_ok("[{'driver':'null-co','node-name':'d','read-only':true,'auto-read-only':true}]");
    g_assert_true(disk->read_only && disk->auto_read_only);
    g_assert_true(memory_disk(disk)->reopened_read_only);
    delete_all();
}

static void test_read_only_is_refused_under_writers(void)
{
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *raw = add_node(RAW, "r", "d");
    BlockBackend *writer = attach(raw, PERM_WRITE);

    reopen_fails("[{'driver':'null-co','node-name':'d','read-only':true}]",
                 "Read-only block node 'd' cannot support read-write users");
    reopen_fails("[{'driver':'raw','node-name':'r','file':'d','read-only':true}]",
                 "Read-only block node 'r' cannot support read-write users");
    g_assert_false(disk->read_only || raw->read_only);
    g_assert_false(memory_disk(disk)->reopened_read_only);
    g_assert_true(backend_set_perm(writer, PERM_CONSISTENT_READ, PERM_ALL, NULL));
    reopen_ok("[{'driver':'null-co','node-name':'d','read-only':true}]");
    g_assert_true(disk->read_only);
    g_assert_false(backend_set_perm(writer, PERM_WRITE, PERM_ALL, NULL));
    backend_free(writer);
    delete_all();
}

static void test_child_exchanged_under_a_user(void)
{
    BlockNode *one = add_node(DISK, "one");
    BlockNode *two = add_node("{'driver':'null-co','node-name':'two','size':8192}");
    BlockNode *raw = add_node(RAW, "r", "one");
    BlockBackend *writer = attach(raw, PERM_WRITE);

    reopen_ok("[{'driver':'raw','node-name':'r','file':'two'}]");
    g_assert_true(raw->file->node == two);
    g_assert_cmpint(backend_size(writer), ==, 8192);
    g_assert_true(one->perm == 0 && memory_disk(one)->perm == 0);
    g_assert_true(memory_disk(two)->perm == PERM_WRITE);
    delete_node("one");
    reopen_ok("[{'driver':'raw','node-name':'r','file':'two','offset':4096}]");
    g_assert_cmpint(node_size(raw), ==, 4096);
    reopen_ok("[{'driver':'raw','node-name':'r','file':'two'}]");
    g_assert_cmpint(node_size(raw), ==, 8192);
    backend_free(writer);
    delete_all();
}

/* QEMU's recipe for copy-before-write: a raw node's file is pointed at the filter and back. */
static void test_filter_by_the_recipe(void)
{
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *raw = add_node(RAW, "r", "d");
    BlockBackend *writer = attach(raw, PERM_WRITE);
    BlockNode *filter;

    add_node(DISK, "t");
    filter = add_node(CBW, "c", "d", "t");
    reopen_ok("[{'driver':'raw','node-name':'r','file':'c'}]");
    g_assert_true(raw->file->node == filter);
    add_node("{'driver':'snapshot-access','node-name':'s','file':'c'}");
    reopen_fails("[{'driver':'raw','node-name':'r','file':'d'}]",
                 "Permission conflict on node 'd': permissions 'write' are both required by node "
                 "'r' (uses node 'd' as 'file' child) and unshared by node 'c' (uses node 'd' as "
                 "'file' child).");
    g_assert_true(raw->file->node == filter);
    delete_node("s");
    reopen_ok("[{'driver':'raw','node-name':'r','file':'d'}]");
    delete_node("c");
    g_assert_true(memory_disk(disk)->perm == PERM_WRITE);
    backend_free(writer);
    delete_all();
}

static void test_all_or_nothing(void)
{
    BlockNode *one = add_node(DISK, "one");
    BlockNode *two = add_node(DISK, "two");
    BlockNode *raw = add_node(RAW, "r", "one");

    memory_disk(two)->refuse_reopen = true;
    reopen_fails("[{'driver':'null-co','node-name':'one','read-only':true},"
                 "{'driver':'raw','node-name':'r','file':'two','offset':512},"
                 "{'driver':'null-co','node-name':'two'}]",
                 "The disk does not want to");
    g_assert_false(one->read_only || memory_disk(one)->reopened_read_only);
    g_assert_true(raw->file->node == one);
    g_assert_cmpint(node_size(raw), ==, MiB);
    g_assert_false(raw->options->u.raw.has_offset);
    g_assert_true(one->drain_depth == 0 && two->refs == 1 && one->refs == 2);
    memory_disk(two)->refuse_reopen = false;
    reopen_ok("[{'driver':'null-co','node-name':'one','read-only':true},"
              "{'driver':'raw','node-name':'r','file':'two','offset':512},"
              "{'driver':'null-co','node-name':'two'}]");
    g_assert_true(one->read_only && raw->file->node == two);
    g_assert_cmpint(node_size(raw), ==, MiB - 512);
    delete_all();
}

static void test_inline_children_follow(void)
{
    BlockNode *raw = add_node("{'driver':'raw','node-name':'r','read-only':true,"
                              "'file':{'driver':'null-co','node-name':'in'}}");
    BlockNode *file = raw->file->node;

    g_assert_true(file->read_only);
    reopen_ok("[{'driver':'raw','node-name':'r','file':'in'}]");
    g_assert_false(file->read_only);
    reopen_ok("[{'driver':'raw','node-name':'r','read-only':true,'file':{'driver':'null-co',"
              "'read-only':false}}]");
    g_assert_true(raw->read_only);
    g_assert_false(file->read_only);
    reopen_fails("[{'driver':'raw','node-name':'r','file':{'driver':'null-co',"
                 "'node-name':'other'}}]",
                 "Cannot change the option 'node-name'");
    reopen_fails("[{'driver':'raw','node-name':'r','file':{'driver':'null-co','size':512}}]",
                 "Cannot change the option 'size'");
    delete_all();
}

static void test_inline_child_left_behind_is_closed(void)
{
    BlockNode *raw = add_node("{'driver':'raw','node-name':'r','file':{'driver':'null-co',"
                              "'node-name':'in'}}");
    BlockNode *disk = add_node(DISK, "d");

    memory_disk(node_find("in"))->refuse_reopen = true; /* nobody asks it */
    reopen_ok("[{'driver':'raw','node-name':'r','file':'d'}]");
    g_assert_true(raw->file->node == disk);
    g_assert_null(node_find("in"));
    delete_all();
}

static void test_last_word_counts(void)
{
    BlockNode *raw;

    add_node(DISK, "one");
    add_node(DISK, "two");
    raw = add_node(RAW, "r", "one");
    reopen_ok("[{'driver':'raw','node-name':'r','file':'one','read-only':true},"
              "{'driver':'raw','node-name':'r','file':'two'}]");
    g_assert_true(raw->file->node == node_find("two"));
    g_assert_false(raw->read_only);
    delete_all();
}

static void test_busy_bitmaps_keep_the_size(void)
{
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *raw = add_node(RAW, "r", "d");
    BitmapAddOptions options = { .name = "b", .granularity = 65536 };
    DirtyBitmap *bitmap = bitmap_add(raw->bitmaps, &options, NULL, NULL);
    GError *error = NULL;

    add_node("{'driver':'null-co','node-name':'small','size':4096}");
    add_node(DISK, "same");
    bitmap_hold(bitmap);
    g_assert_false(reopen(&error, "[{'driver':'raw','node-name':'r','file':'small'}]"));
    g_assert_nonnull(error);
    g_clear_error(&error);
    g_assert_true(raw->file->node == disk);
    reopen_ok("[{'driver':'raw','node-name':'r','file':'same'}]");
    bitmap_release(bitmap);
    reopen_ok("[{'driver':'raw','node-name':'r','file':'small'}]");
    g_assert_cmpint(bitmap_size(bitmap), ==, 4096);
    delete_all();
}

static void coroutine_fn write_some(void *opaque)
{
    uint8_t data[512] = { 1 };
    IoVector vec;

    iov_init_buf(&vec, data, sizeof(data));
    g_assert_cmpint(backend_co_pwritev(opaque, 0, sizeof(data), &vec, 0), ==, 0);
}

static void test_writes_are_flushed_before(void)
{
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *raw = add_node(RAW, "r", "d");
    BlockBackend *writer = attach(raw, PERM_WRITE);

    add_node(DISK, "o");
    coroutine_run(write_some, writer);
    memory_disk(disk)->refuse_flush = true;
    reopen_fails("[{'driver':'raw','node-name':'r','file':'o'}]",
                 "Error flushing node 'r': No space left on device");
    g_assert_true(raw->file->node == disk);
    memory_disk(disk)->refuse_flush = false;
    reopen_ok("[{'driver':'raw','node-name':'r','file':'o'}]");
    g_assert_cmpint(memory_disk(disk)->flushes, ==, 2);
    backend_free(writer);
    delete_all();
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    graph_drivers_register();
    g_test_add_func("/reopen/words-of-refusals", test_words_of_refusals);
    g_test_add_func("/reopen/options-left-out-are-reset", test_options_left_out_are_reset);
    g_test_add_func("/reopen/read-only-is-refused-under-writers",
                    test_read_only_is_refused_under_writers);
    g_test_add_func("/reopen/child-exchanged-under-a-user", test_child_exchanged_under_a_user);
    g_test_add_func("/reopen/filter-by-the-recipe", test_filter_by_the_recipe);
    g_test_add_func("/reopen/all-or-nothing", test_all_or_nothing);
    g_test_add_func("/reopen/inline-children-follow", test_inline_children_follow);
    g_test_add_func("/reopen/inline-child-left-behind-is-closed",
                    test_inline_child_left_behind_is_closed);
    g_test_add_func("/reopen/last-word-counts", test_last_word_counts);
    g_test_add_func("/reopen/busy-bitmaps-keep-the-size", test_busy_bitmaps_keep_the_size);
    g_test_add_func("/reopen/writes-are-flushed-before", test_writes_are_flushed_before);
    return g_test_run();
}

/* SPDX-License-Identifier: MIT */
/* Nodes, names, edges, filters and resizing, on drivers of the tests' own. */
#include "graph-drivers.h"
#include "util/error.h"
#include "util/size.h"

#define DISK "{'driver':'null-co','node-name':'%s'}"
#define RAW  "{'driver':'raw','node-name':'%s','file':'%s'}"
#define CBW  "{'driver':'copy-before-write','node-name':'%s','file':'%s','target':'%s'}"

static void assert_add_fails(const char *text, const char *message)
{
    g_autofree char *got = add_node_error("%s", text);

    g_assert_cmpstr(got, ==, message);
}

static void assert_delete_fails(const char *node_name, const char *message)
{
    GError *error = NULL;

    g_assert_false(node_delete(node_name, &error));
    assert_error(error, message);
}

/* --- names --- */

static void test_names_are_checked(void)
{
    add_node(DISK, "d");
    assert_add_fails("{'driver':'null-co'}", "'node-name' must be specified for the root node");
    assert_add_fails("{'driver':'null-co','node-name':''}", "Invalid node-name: ''");
    assert_add_fails("{'driver':'null-co','node-name':'1d'}", "Invalid node-name: '1d'");
    assert_add_fails("{'driver':'null-co','node-name':'a b'}", "Invalid node-name: 'a b'");
    assert_add_fails("{'driver':'null-co','node-name':'#block1'}", "Invalid node-name: '#block1'");
    assert_add_fails("{'driver':'null-co','node-name':'d'}", "Duplicate nodes with node-name='d'");
    assert_add_fails("{'driver':'null-co','node-name':'abcdefghijabcdefghijabcdefghij12'}",
                     "Node name too long");
    add_node(DISK, "abcdefghijabcdefghijabcdefghij1");
    add_node(DISK, "A.b-c_9");
    delete_all();
}

static void test_inline_child_may_not_take_the_parents_name(void)
{
    assert_add_fails("{'driver':'raw','node-name':'x','file':{'driver':'null-co',"
                     "'node-name':'x'}}",
                     "Duplicate nodes with node-name='x'");
    g_assert_null(node_next(NULL));
    assert_add_fails("{'driver':'raw','node-name':'x','file':'x'}",
                     "Cannot find device='x' nor node-name='x'");
    g_assert_null(node_next(NULL));
}

static void test_inline_children_get_names_nobody_can_give(void)
{
    BlockNode *raw = add_node("{'driver':'raw','node-name':'r','file':{'driver':'null-co'}}");
    BlockNode *file = raw->file->node;

    g_assert_true(g_str_has_prefix(file->node_name, "#block"));
    g_assert_true(node_find(file->node_name) == file);
    g_assert_true(node_next(NULL) == raw);
    g_assert_true(node_next(raw) == file);
    delete_node("r");
    g_assert_null(node_next(NULL));
}

/* --- life --- */

static void test_deleting_is_refused_while_in_use(void)
{
    BlockBackend *backend = backend_new("an unnamed block device", 0, PERM_ALL);
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *inner;

    assert_delete_fails("none", "Failed to find node with node-name='none'");
    add_node(RAW, "r", "d");
    assert_delete_fails("d", "Block device d is in use");
    delete_node("r");

    g_assert_true(backend_attach(backend, disk, NULL));
    assert_delete_fails("d", "Node d is in use");
    backend_free(backend);
    delete_node("d");

    inner = add_node("{'driver':'raw','node-name':'r','file':{'driver':'null-co',"
                     "'node-name':'in'}}")
                ->file->node;
    assert_delete_fails("in", "Node in is not owned by the monitor");
    g_assert_cmpuint(inner->refs, ==, 1);
    delete_all();
}

static void test_failed_opening_leaves_nothing(void)
{
    BlockNode *disk = add_node(DISK, "d");

    assert_add_fails("{'driver':'raw','node-name':'r','file':'none'}",
                     "Cannot find device='none' nor node-name='none'");
    assert_add_fails("{'driver':'copy-before-write','node-name':'c','file':{'driver':'null-co'},"
                     "'target':'none'}",
                     "Cannot find device='none' nor node-name='none'");
    assert_add_fails("{'driver':'copy-before-write','node-name':'c','file':'d','target':'none'}",
                     "Cannot find device='none' nor node-name='none'");
    g_assert_true(node_next(NULL) == disk);
    g_assert_null(node_next(disk));
    g_assert_cmpuint(disk->refs, ==, 1);
    g_assert_cmpuint(disk->parents->len, ==, 0);
    delete_all();
}

static void test_failed_opening_over_a_drained_node(void)
{
    BlockNode *disk = add_node(DISK, "d");
    DrainSection *section = drain_begin_node(disk);

    assert_add_fails("{'driver':'copy-before-write','node-name':'c','file':'d','target':'none'}",
                     "Cannot find device='none' nor node-name='none'");
    drain_end(section);
    g_assert_cmpuint(disk->refs, ==, 1);
    delete_all();
}

static void test_node_deleted_in_a_drained_section_goes_with_it(void)
{
    BlockNode *disk = add_node(DISK, "d");
    DrainSection *section;

    add_node(RAW, "r", "d");
    section = drain_begin_node(disk);
    node_find("r")->monitor_owned = false;
    node_unref(node_find("r"));
    g_assert_nonnull(node_find("r"));
    drain_end(section);
    g_assert_null(node_find("r"));
    g_assert_cmpuint(disk->parents->len, ==, 0);
    delete_all();
}

static void test_common_options_contradict(void)
{
    assert_add_fails("{'driver':'null-co','node-name':'d','detect-zeroes':'unmap'}",
                     "setting detect-zeroes to unmap is not allowed without setting discard "
                     "operation to unmap");
    assert_add_fails("{'driver':'null-co','node-name':'d','force-share':true}",
                     "force-share=on can only be used with read-only images");
    add_node("{'driver':'null-co','node-name':'d','force-share':true,'read-only':true,"
             "'detect-zeroes':'unmap','discard':'unmap'}");
    delete_all();
}

static void test_inline_children_inherit(void)
{
    BlockNode *raw = add_node("{'driver':'raw','node-name':'r','read-only':true,"
                              "'cache':{'no-flush':true},'file':{'driver':'null-co',"
                              "'cache':{'direct':true}}}");
    BlockNode *file = raw->file->node;

    g_assert_true(file->read_only && file->cache_no_flush && file->cache_direct);
    g_assert_true(file->discard_unmap);
    g_assert_false(raw->cache_direct || raw->discard_unmap);
    delete_all();
}

/* --- edges --- */

static void test_circles_are_refused(void)
{
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *low = add_node(RAW, "low", "d");
    BlockNode *high = add_node(RAW, "high", "low");
    UndoStack *undo = undo_stack_new();
    GError *error = NULL;

    g_assert_true(node_reaches(high, disk) && node_reaches(low, low));
    g_assert_false(node_reaches(disk, high));
    g_assert_null(node_attach_child(disk, high, "file", CHILD_FILTERED, &error));
    assert_error(error, "Making 'high' a file child of 'd' would create a cycle");
    g_assert_false(child_set_node(low->file, high, undo, &error));
    assert_error(error, "Making 'high' a file child of 'low' would create a cycle");
    undo_abort(undo);
    delete_all();
}

static unsigned changes;

static void count_change(void *opaque)
{
    changes++;
}

static void test_edge_set_and_taken_back(void)
{
    BlockNode *one = add_node(DISK, "one");
    BlockNode *two = add_node("{'driver':'null-co','node-name':'two','size':4096}");
    BlockNode *raw = add_node(RAW, "r", "one");
    BlockBackend *backend = backend_new("b", PERM_WRITE, PERM_ALL);
    UndoStack *undo = undo_stack_new();

    g_assert_true(backend_attach(backend, raw, NULL));
    backend_set_change_handler(backend, count_change, NULL);
    changes = 0;
    drain_end_with(drain_begin((BlockNode *[]){ raw, two }, 2), undo);
    g_assert_true(child_set_node(raw->file, two, undo, NULL));
    g_assert_cmpuint(memory_disk(two)->perm, ==, PERM_WRITE);
    g_assert_cmpuint(memory_disk(one)->perm, ==, 0);
    undo_abort(undo);
    g_assert_true(raw->file->node == one);
    g_assert_cmpuint(memory_disk(two)->perm, ==, 0);
    g_assert_cmpuint(memory_disk(one)->perm, ==, PERM_WRITE);
    g_assert_cmpuint(two->refs, ==, 1);
    g_assert_cmpint(backend_size(backend), ==, MiB);
    g_assert_cmpuint(changes, ==, 0);

    undo = undo_stack_new();
    drain_end_with(drain_begin((BlockNode *[]){ raw, two }, 2), undo);
    g_assert_true(child_set_node(raw->file, two, undo, NULL));
    undo_commit(undo);
    g_assert_cmpuint(one->refs, ==, 1);
    g_assert_cmpint(backend_size(backend), ==, 4096);
    g_assert_cmpuint(changes, ==, 1);
    backend_free(backend);
    delete_all();
}

/* --- filters --- */

static void test_filter_inserted_and_removed(void)
{
    BlockNode *disk = add_node(DISK, "d");
    BlockBackend *direct = backend_new("b", PERM_WRITE, PERM_ALL);
    g_autoptr(BlockdevOptions) options = NULL;
    BlockNode *raw, *filter;
    GError *error = NULL;

    add_node(DISK, "t");
    raw = add_node(RAW, "r", "d");
    g_assert_true(backend_attach(direct, disk, NULL));
    options = parse_options("{'driver':'copy-before-write','node-name':'c','file':'d',"
                            "'target':'t'}");
    filter = node_insert_filter(options, NULL, &error);
    g_assert_no_error(error);
    g_assert_true(raw->file->node == filter && backend_node(direct) == filter);
    g_assert_true(filter->file->node == disk && node_skip_filters(filter) == disk);
    g_assert_cmpuint(filter->file->perm, ==, PERM_WRITE);
    g_assert_cmpuint(disk->drain_depth, ==, 0);

    g_assert_true(node_remove_filter("c", NULL, &error));
    g_assert_null(node_find("c"));
    g_assert_true(raw->file->node == disk && backend_node(direct) == disk);
    backend_free(direct);
    delete_all();
}

static void test_filter_insertion_taken_back(void)
{
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *target = add_node(DISK, "t");
    BlockNode *raw = add_node(RAW, "r", "d");
    g_autoptr(BlockdevOptions) options = NULL;
    UndoStack *undo = undo_stack_new();

    options = parse_options("{'driver':'copy-before-write','node-name':'c','file':'d',"
                            "'target':'t'}");
    g_assert_true(node_filter_target(options, NULL) == disk);
    g_assert_nonnull(node_insert_filter(options, undo, NULL));
    g_assert_cmpuint(raw->drain_depth, >, 0);
    undo_abort(undo);
    g_assert_null(node_find("c"));
    g_assert_true(raw->file->node == disk);
    g_assert_cmpuint(disk->refs, ==, 2);
    g_assert_cmpuint(target->refs, ==, 1);
    g_assert_cmpuint(raw->drain_depth, ==, 0);
    delete_all();
}

static void test_filter_removal_taken_back(void)
{
    BlockNode *filter, *raw;
    UndoStack *undo = undo_stack_new();

    add_node(DISK, "d");
    add_node(DISK, "t");
    filter = add_node(CBW, "c", "d", "t");
    raw = add_node(RAW, "r", "c");
    g_assert_true(node_remove_filter("c", undo, NULL));
    g_assert_true(raw->file->node == node_find("d"));
    undo_abort(undo);
    g_assert_true(node_find("c") == filter && raw->file->node == filter);
    g_assert_true(filter->monitor_owned);
    delete_all();
}

/* What is on an undo stack more than once. */
static void test_several_filters_removed_together(void)
{
    BlockNode *disk = add_node(DISK, "d");
    BlockBackend *user = backend_new("b", PERM_WRITE, PERM_ALL);
    GError *error = NULL;

    add_node(DISK, "t");
    add_node(DISK, "t2");
    add_node(CBW, "lower", "d", "t");
    add_node(CBW, "upper", "lower", "t2");
    g_assert_true(backend_attach(user, node_find("upper"), NULL));
    for (int commit = 0; commit < 2; commit++) {
        UndoStack *undo = undo_stack_new();

        g_assert_true(node_remove_filter("upper", undo, NULL));
        g_assert_true(node_remove_filter("lower", undo, NULL));
        g_assert_false(node_remove_filter("upper", undo, &error));
        assert_error(error, "Node upper is not owned by the monitor");
        g_assert_true(backend_node(user) == disk);
        undo_finish(undo, commit);
        g_assert_true(backend_node(user) == (commit ? disk : node_find("upper")));
    }
    g_assert_null(node_find("upper"));
    g_assert_null(node_find("lower"));
    g_assert_cmpuint(disk->refs, ==, 2);
    backend_free(user);
    delete_all();
}

static void test_filters_refused(void)
{
    g_autoptr(BlockdevOptions) no_filter = NULL;
    g_autoptr(BlockdevOptions) inline_file = NULL;
    g_autoptr(BlockdevOptions) no_file = NULL;
    GError *error = NULL;

    no_filter = parse_options("{'driver':'null-co','node-name':'x'}");
    inline_file = parse_options("{'driver':'copy-before-write','node-name':'x','target':'t',"
                                "'file':{'driver':'null-co'}}");
    no_file = parse_options("{'driver':'copy-before-write','node-name':'x','target':'t',"
                            "'file':'none'}");
    g_assert_null(node_insert_filter(no_filter, NULL, &error));
    assert_error(error, "Driver 'null-co' is not a filter that can be inserted");
    g_assert_null(node_insert_filter(inline_file, NULL, &error));
    assert_error(error, "Parameter 'file' must be the node-name of the node to go over");
    g_assert_null(node_insert_filter(no_file, NULL, &error));
    assert_error(error, "Cannot find device='' nor node-name='none'");

    add_node(DISK, "d");
    add_node(DISK, "t");
    add_node(CBW, "c", "d", "t");
    add_node("{'driver':'snapshot-access','node-name':'s','file':'c'}");
    g_assert_false(node_remove_filter("c", NULL, &error));
    assert_error(error, "Node 'c' is busy: node is used as 'file' of 's'");
    g_assert_false(node_remove_filter("d", NULL, &error));
    assert_error(error, "Node 'd' is not a filter that can be removed");
    g_assert_false(node_remove_filter("none", NULL, &error));
    assert_error(error, "Failed to find node with node-name='none'");
    delete_all();
}

static void test_filter_insertion_refused_by_permissions(void)
{
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *target = add_node("{'driver':'null-co','node-name':'t','read-only':true}");
    g_autoptr(BlockdevOptions) options = NULL;
    GError *error = NULL;

    add_node(RAW, "r", "d");
    options = parse_options("{'driver':'copy-before-write','node-name':'c','file':'d',"
                            "'target':'t'}");
    g_assert_null(node_insert_filter(options, NULL, &error));
    assert_error(error, "Block node is read-only");
    g_assert_null(node_find("c"));
    g_assert_cmpuint(disk->parents->len, ==, 1);
    g_assert_cmpuint(target->refs, ==, 1);
    delete_all();
}

/* A view keeps looking at the filter that it was opened on when another one is put over that. */
static void test_pinned_edges_stay(void)
{
    g_autoptr(BlockdevOptions) options = NULL;
    BlockNode *view, *first, *raw;

    add_node(DISK, "d");
    add_node(DISK, "t");
    add_node(DISK, "t2");
    first = add_node(CBW, "c", "d", "t");
    raw = add_node(RAW, "r", "c");
    view = add_node("{'driver':'snapshot-access','node-name':'s','file':'c'}");
    options = parse_options("{'driver':'copy-before-write','node-name':'c2','file':'c',"
                            "'target':'t2'}");
    g_assert_nonnull(node_insert_filter(options, NULL, NULL));
    g_assert_true(raw->file->node == node_find("c2"));
    g_assert_true(view->file->node == first);
    delete_all();
}

/* --- size --- */

static DirtyBitmap *add_bitmap(BlockNode *node, const char *name)
{
    BitmapAddOptions options = { .name = name, .granularity = 65536 };
    GError *error = NULL;
    DirtyBitmap *bitmap = bitmap_add(node->bitmaps, &options, NULL, &error);

    g_assert_no_error(error);
    return bitmap;
}

static void test_resize_reaches_parents_and_bitmaps(void)
{
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *raw = add_node(RAW, "r", "d");
    BlockBackend *backend = backend_new("b", PERM_WRITE, PERM_ALL);
    DirtyBitmap *low = add_bitmap(disk, "b");
    DirtyBitmap *high = add_bitmap(raw, "b");

    g_assert_true(backend_attach(backend, raw, NULL));
    backend_set_change_handler(backend, count_change, NULL);
    changes = 0;
    g_assert_true(node_resize(raw, 3 * MiB, NULL));
    g_assert_cmpint(node_size(disk), ==, 3 * MiB);
    g_assert_cmpint(backend_size(backend), ==, 3 * MiB);
    g_assert_cmpint(bitmap_size(low), ==, 3 * MiB);
    g_assert_cmpint(bitmap_size(high), ==, 3 * MiB);
    g_assert_cmpuint(changes, >=, 1);
    g_assert_true(node_resize(disk, 4096, NULL));
    g_assert_cmpint(node_size(raw), ==, 4096);
    g_assert_cmpint(bitmap_size(high), ==, 4096);
    backend_free(backend);
    delete_all();
}

static void test_resize_refused(void)
{
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *window = add_node("{'driver':'raw','node-name':'r','file':'d','offset':512}");
    DirtyBitmap *bitmap;
    GError *error = NULL;

    g_assert_false(node_resize(disk, -1, &error));
    assert_error(error, "Parameter 'size' expects a >0 size");
    g_assert_false(node_resize(disk, INT64_MAX, &error));
    assert_error(error, "offset(9223372036854775807) exceeds maximum(9223372035781033984)");
    g_assert_false(node_resize(disk, 2 * MiB, &error));
    assert_error(error, "Permission conflict on node 'd': permissions 'resize' are both required "
                        "by an unnamed block device (uses node 'd' as 'root' child) and unshared "
                        "by node 'r' (uses node 'd' as 'file' child).");
    g_assert_cmpint(node_size(window), ==, MiB - 512);
    delete_node("r");

    bitmap = add_bitmap(disk, "b");
    bitmap_hold(bitmap);
    g_assert_false(node_resize(disk, 2 * MiB, &error));
    g_assert_nonnull(error);
    g_clear_error(&error);
    g_assert_false(node_resize(add_node(RAW, "above", "d"), 2 * MiB, &error));
    g_assert_nonnull(error);
    g_clear_error(&error);
    bitmap_release(bitmap);
    /* Also of somebody else who follows the same file. */
    bitmap = add_bitmap(add_node(RAW, "other", "d"), "b");
    bitmap_hold(bitmap);
    g_assert_false(node_resize(node_find("above"), 2 * MiB, &error));
    g_assert_nonnull(error);
    g_clear_error(&error);
    bitmap_release(bitmap);
    g_assert_cmpint(node_size(disk), ==, MiB);
    g_assert_null(backend_next(NULL));
    delete_all();
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    graph_drivers_register();
    g_test_add_func("/graph/names-are-checked", test_names_are_checked);
    g_test_add_func("/graph/inline-child-may-not-take-the-parents-name",
                    test_inline_child_may_not_take_the_parents_name);
    g_test_add_func("/graph/inline-children-get-names-nobody-can-give",
                    test_inline_children_get_names_nobody_can_give);
    g_test_add_func("/graph/deleting-is-refused-while-in-use",
                    test_deleting_is_refused_while_in_use);
    g_test_add_func("/graph/failed-opening-leaves-nothing", test_failed_opening_leaves_nothing);
    g_test_add_func("/graph/failed-opening-over-a-drained-node",
                    test_failed_opening_over_a_drained_node);
    g_test_add_func("/graph/node-deleted-in-a-drained-section-goes-with-it",
                    test_node_deleted_in_a_drained_section_goes_with_it);
    g_test_add_func("/graph/common-options-contradict", test_common_options_contradict);
    g_test_add_func("/graph/inline-children-inherit", test_inline_children_inherit);
    g_test_add_func("/graph/circles-are-refused", test_circles_are_refused);
    g_test_add_func("/graph/edge-set-and-taken-back", test_edge_set_and_taken_back);
    g_test_add_func("/graph/filter-inserted-and-removed", test_filter_inserted_and_removed);
    g_test_add_func("/graph/filter-insertion-taken-back", test_filter_insertion_taken_back);
    g_test_add_func("/graph/filter-removal-taken-back", test_filter_removal_taken_back);
    g_test_add_func("/graph/several-filters-removed-together",
                    test_several_filters_removed_together);
    g_test_add_func("/graph/filters-refused", test_filters_refused);
    g_test_add_func("/graph/filter-insertion-refused-by-permissions",
                    test_filter_insertion_refused_by_permissions);
    g_test_add_func("/graph/pinned-edges-stay", test_pinned_edges_stay);
    g_test_add_func("/graph/resize-reaches-parents-and-bitmaps",
                    test_resize_reaches_parents_and_bitmaps);
    g_test_add_func("/graph/resize-refused", test_resize_refused);
    return g_test_run();
}

/* SPDX-License-Identifier: MIT */
/* Who may do what with a node, in QEMU's words. */
#include "graph-drivers.h"
#include "util/error.h"

#define DISK    "{'driver':'null-co','node-name':'%s'}"
#define RO_DISK "{'driver':'null-co','node-name':'%s','read-only':true}"
#define RAW     "{'driver':'raw','node-name':'%s','file':'%s'}"
#define WINDOW  "{'driver':'raw','node-name':'%s','file':'%s','offset':512}"
#define READ    PERM_CONSISTENT_READ
#define FIXED   (PERM_ALL & ~PERM_RESIZE)

static BlockBackend *attach(BlockNode *node, unsigned perm, unsigned shared, GError **error)
{
    BlockBackend *backend = backend_new("an unnamed block device", perm, shared);

    if (!backend_attach(backend, node, error)) {
        backend_free(backend);
        return NULL;
    }
    return backend;
}

static BlockBackend *attach_ok(BlockNode *node, unsigned perm, unsigned shared)
{
    GError *error = NULL;
    BlockBackend *backend = attach(node, perm, shared, &error);

    g_assert_no_error(error);
    return backend;
}

static void test_sums_go_down(void)
{
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *raw = add_node(RAW, "r", "d");
    MemoryDisk *state = memory_disk(disk);
    BlockBackend *first, *second;

    g_assert_true(disk->perm == 0 && disk->shared == PERM_ALL);
    g_assert_cmpint(state->set_perm_calls, ==, 0);
    first = attach_ok(raw, READ | PERM_WRITE, FIXED);
    g_assert_true(state->perm == (READ | PERM_WRITE) && state->shared == FIXED);
    second = attach_ok(disk, READ, PERM_ALL & ~PERM_WRITE_UNCHANGED);
    g_assert_true(state->perm == (READ | PERM_WRITE));
    g_assert_true(state->shared == (FIXED & ~PERM_WRITE_UNCHANGED));
    g_assert_true(raw->perm == (READ | PERM_WRITE) && raw->shared == FIXED);
    backend_free(first);
    g_assert_true(state->perm == READ);
    backend_free(second);
    g_assert_true(state->perm == 0 && state->shared == PERM_ALL);
    delete_all();
}

static void test_conflict_names_both_users(void)
{
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *raw = add_node(RAW, "r", "d");
    BlockBackend *writer = attach_ok(raw, READ | PERM_WRITE, PERM_ALL);
    GError *error = NULL;

    g_assert_null(attach(disk, READ, PERM_ALL & ~PERM_WRITE, &error));
    assert_error(error, "Permission conflict on node 'd': permissions 'write' are both required by "
                        "node 'r' (uses node 'd' as 'file' child) and unshared by an unnamed "
                        "block device (uses node 'd' as 'root' child).");
    g_assert_null(attach(disk, READ, PERM_RESIZE, &error));
    assert_error(error, "Permission conflict on node 'd': permissions 'consistent read, write' are "
                        "both required by node 'r' (uses node 'd' as 'file' child) and unshared "
                        "by an unnamed block device (uses node 'd' as 'root' child).");
    backend_free(writer);
    delete_all();
}

static void test_refusal_changes_nothing(void)
{
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *raw = add_node(RAW, "r", "d");
    BlockBackend *reader = attach_ok(raw, READ, PERM_ALL & ~PERM_WRITE);
    MemoryDisk *state = memory_disk(disk);
    unsigned perm = state->perm, shared = state->shared;

    g_assert_null(attach(raw, READ | PERM_WRITE, PERM_ALL, NULL));
    g_assert_true(disk->perm == perm && disk->shared == shared);
    g_assert_true(state->perm == perm && state->shared == shared);
    g_assert_cmpuint(raw->parents->len, ==, 1);
    g_assert_cmpuint(disk->drain_depth, ==, 0);

    /* Refused by the driver, after everything was computed. */
    state->refuse_perm = true;
    g_assert_false(backend_set_perm(reader, READ | PERM_WRITE, PERM_ALL, NULL));
    g_assert_true(disk->perm == perm && disk->shared == shared);
    g_assert_true(raw->file->perm == perm && raw->file->shared == shared);
    g_assert_true(backend_root(reader)->perm == READ);
    state->refuse_perm = false;
    g_assert_true(backend_set_perm(reader, READ | PERM_WRITE, PERM_ALL, NULL));
    g_assert_true(state->perm == (READ | PERM_WRITE));
    backend_free(reader);
    delete_all();
}

static void test_read_only_nodes_have_no_writers(void)
{
    BlockNode *disk = add_node(RO_DISK, "d");
    BlockNode *raw = add_node(RAW, "r", "d");
    BlockBackend *reader = attach_ok(raw, READ, PERM_ALL);
    GError *error = NULL;

    g_assert_null(attach(raw, READ | PERM_WRITE, PERM_ALL, &error));
    assert_error(error, "Block node is read-only");
    g_assert_null(attach(disk, PERM_WRITE_UNCHANGED, PERM_ALL, &error));
    assert_error(error, "Block node is read-only");
    backend_free(reader);
    delete_all();
}

static void test_windows_share_a_disk_of_fixed_size(void)
{
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *first = add_node(WINDOW, "w1", "d");
    BlockNode *second = add_node(WINDOW, "w2", "d");
    BlockBackend *a = attach_ok(first, READ | PERM_WRITE, FIXED);
    BlockBackend *b = attach_ok(second, READ | PERM_WRITE, FIXED);
    GError *error = NULL;

    g_assert_true(disk->perm == (READ | PERM_WRITE));
    g_assert_null(attach(disk, PERM_RESIZE, PERM_ALL, &error));
    g_assert_true(g_str_has_prefix(error->message, "Permission conflict on node 'd': permissions "
                                                   "'resize' are both required by"));
    g_clear_error(&error);
    backend_free(a);
    backend_free(b);
    delete_all();
}

/* The other roles, attached by hand. */
static void test_roles(void)
{
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *base = add_node(DISK, "b");
    BlockNode *top = add_node(RAW, "top", "d");
    BlockChild *metadata, *backing;
    BlockBackend *writer;
    GError *error = NULL;

    metadata = node_attach_child(top, base, "metadata", CHILD_METADATA, NULL);
    g_assert_true(metadata->perm == (READ | PERM_WRITE | PERM_RESIZE));
    g_assert_true(metadata->shared == (READ | PERM_WRITE_UNCHANGED));
    node_detach_child(metadata);
    g_assert_cmpuint(base->perm, ==, 0);

    backing = node_attach_child(top, base, "backing", CHILD_COW, NULL);
    g_assert_true(top->backing == backing);
    g_assert_true(backing->perm == 0 && backing->shared == PERM_ALL);
    writer = attach_ok(top, READ | PERM_WRITE, FIXED & ~PERM_WRITE);
    g_assert_true(backing->perm == READ && backing->shared == (READ | PERM_WRITE_UNCHANGED));
    g_assert_null(attach(base, PERM_WRITE, PERM_ALL, &error));
    assert_error(error, "Permission conflict on node 'b': permissions 'write' are both required by "
                        "an unnamed block device (uses node 'b' as 'root' child) and unshared by "
                        "node 'top' (uses node 'b' as 'backing' child).");
    backend_free(writer);
    g_assert_true(disk->perm == 0);
    delete_all();
    g_assert_null(node_find("b"));
}

static void test_refused_child_is_not_attached(void)
{
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *top;
    BlockBackend *writer = attach_ok(disk, PERM_WRITE, PERM_ALL);
    GError *error = NULL;

    add_node(DISK, "o");
    top = add_node(RAW, "top", "o");
    g_assert_null(node_attach_child(top, disk, "metadata", CHILD_METADATA, &error));
    assert_error(error, "Permission conflict on node 'd': permissions 'write' are both required by "
                        "an unnamed block device (uses node 'd' as 'root' child) and unshared by "
                        "node 'top' (uses node 'd' as 'metadata' child).");
    g_assert_cmpuint(top->children->len, ==, 1);
    g_assert_cmpuint(disk->refs, ==, 2);
    backend_free(writer);
    delete_all();
}

static void test_force_share_shares_all(void)
{
    BlockNode *disk = add_node("{'driver':'null-co','node-name':'d','read-only':true,"
                               "'force-share':true}");
    BlockNode *window = add_node(WINDOW, "w", "d");
    BlockBackend *reader = attach_ok(window, READ, READ);

    g_assert_true(window->shared == READ && window->file->shared == PERM_ALL);
    g_assert_true(memory_disk(disk)->shared == PERM_ALL);
    backend_free(reader);
    delete_all();
}

static void test_refresh_is_taken_back(void)
{
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *raw = add_node(RAW, "r", "d");
    BlockBackend *backend = attach_ok(raw, READ, PERM_ALL);
    UndoStack *undo = undo_stack_new();

    backend_root(backend)->perm = READ | PERM_WRITE;
    g_assert_true(node_refresh_perms(raw, undo, NULL));
    g_assert_true(memory_disk(disk)->perm == (READ | PERM_WRITE));
    undo_abort(undo);
    g_assert_true(memory_disk(disk)->perm == READ);
    backend_root(backend)->perm = READ;
    backend_free(backend);
    delete_all();
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    graph_drivers_register();
    g_test_add_func("/perms/sums-go-down", test_sums_go_down);
    g_test_add_func("/perms/conflict-names-both-users", test_conflict_names_both_users);
    g_test_add_func("/perms/refusal-changes-nothing", test_refusal_changes_nothing);
    g_test_add_func("/perms/read-only-nodes-have-no-writers", test_read_only_nodes_have_no_writers);
    g_test_add_func("/perms/windows-share-a-disk-of-fixed-size",
                    test_windows_share_a_disk_of_fixed_size);
    g_test_add_func("/perms/roles", test_roles);
    g_test_add_func("/perms/refused-child-is-not-attached", test_refused_child_is_not_attached);
    g_test_add_func("/perms/force-share-shares-all", test_force_share_shares_all);
    g_test_add_func("/perms/refresh-is-taken-back", test_refresh_is_taken_back);
    return g_test_run();
}

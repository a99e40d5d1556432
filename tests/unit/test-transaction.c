/* SPDX-License-Identifier: MIT */
/*
 * Transactions: words, all or nothing, and one instant for all disks.
 *
 * Words are QEMU 7.2's, but for where it crashes: a merge of no bitmaps, grouped enabling.
 */
#include "graph-drivers.h"
#include "qapi/codec.h"
#include "qapi/json.h"
#include "qapi/qapi-codec.h"
#include "qapi/qapi-commands.h"
#include "util/error.h"
#include "util/event-loop.h"

#include <string.h>

#define DISK "{'driver':'null-co','node-name':'%s','size':%d}"
#define MIB  (1 << 20)

/* Short forms of actions in the texts below. */
#define ACT(type, data)     "{'type':'" type "','data':{" data "}}"
#define ADD(node, name)     ACT("block-dirty-bitmap-add", "'node':'" node "','name':'" name "'")
#define REMOVE(node, name)  ACT("block-dirty-bitmap-remove", "'node':'" node "','name':'" name "'")
#define CLEAR(node, name)   ACT("block-dirty-bitmap-clear", "'node':'" node "','name':'" name "'")
#define ENABLE(node, name)  ACT("block-dirty-bitmap-enable", "'node':'" node "','name':'" name "'")
#define DISABLE(node, name) ACT("block-dirty-bitmap-disable", "'node':'" node "','name':'" name "'")
#define MERGE(node, target, sources)                                                               \
    ACT("block-dirty-bitmap-merge",                                                                \
        "'node':'" node "','target':'" target "','bitmaps':[" sources "]")
#define ABORT   ACT("abort", "")
#define GROUPED "'properties':{'completion-mode':'grouped'}"

/* `actions` and, behind them, other arguments. */
static bool transaction(const char *actions, const char *more, GError **error)
{
    g_autofree char *text =
        g_strdup_printf("{'actions':[%s]%s%s}", actions, more ? "," : "", more ? more : "");
    g_autoptr(TransactionArgs) args = NULL;
    json_t *json = qapi_json_parse(text, strlen(text), error);

    g_assert_nonnull(json);
    args = transaction_args_decode(json, error);
    json_decref(json);
    return args && qmp_transaction(args->actions, args->properties, error);
}

static void succeeds(const char *actions)
{
    GError *error = NULL;

    transaction(actions, NULL, &error);
    g_assert_no_error(error);
}

static void refused(const char *actions, const char *more, const char *words)
{
    GError *error = NULL;

    g_assert_false(transaction(actions, more, &error));
    assert_error(error, words);
}

static DirtyBitmap *bitmap(const char *node, const char *name)
{
    DirtyBitmap *found = bitmap_find(node_find(node)->bitmaps, name);

    g_assert_nonnull(found);
    return found;
}

static void mark(const char *node, int64_t offset, int64_t bytes)
{
    bitmap_list_mark(node_find(node)->bitmaps, offset, bytes);
}

/* What all bitmaps of all nodes look like, as text. */
static char *picture(void)
{
    GString *text = g_string_new(NULL);

    for (BlockNode *node = node_next(NULL); node; node = node_next(node)) {
        DirtyBitmap *b = NULL;

        g_string_append_printf(text, "%s:", node->node_name);
        while ((b = bitmap_list_next(node->bitmaps, b))) {
            g_autofree char *sha256 = bitmap_sha256(b);

            g_string_append_printf(text, " %s(%" G_GINT64_FORMAT "%s%s %s)", bitmap_name(b),
                                   bitmap_granularity(b), bitmap_is_enabled(b) ? " enabled" : "",
                                   bitmap_is_busy(b) ? " busy" : "", sha256);
        }
        g_string_append_c(text, '\n');
    }
    return g_string_free(text, FALSE);
}

static void two_disks(void)
{
    add_node(DISK, "one", MIB);
    add_node(DISK, "two", 2 * MIB);
    succeeds(ADD("one", "a") "," ADD("one", "b") "," ADD("two", "c"));
    mark("one", 0, 1);
    mark("two", 100000, 70000);
    succeeds(DISABLE("one", "b") "," DISABLE("two", "c"));
    mark("one", 65536, 1);
    g_assert_cmpint(bitmap_dirty_bytes(bitmap("one", "a")), ==, 131072);
    g_assert_cmpint(bitmap_dirty_bytes(bitmap("one", "b")), ==, 65536);
    g_assert_cmpint(bitmap_dirty_bytes(bitmap("two", "c")), ==, 131072);
}

/* --- words --- */

typedef struct Refusal {
    const char *actions, *more, *words;
} Refusal;

static const char not_grouped[] = "does not support Transaction property completion-mode = grouped";

static const Refusal refusals[] = {
    { ABORT, NULL, "Transaction aborted using Abort action" },
    { ABORT "," ADD("nope", "x"), NULL, "Transaction aborted using Abort action" },
    { ADD("nope", "x"), NULL, "Cannot find device='nope' nor node-name='nope'" },
    { ADD("one", "x") "," ADD("one", "x"), NULL, "Bitmap already exists: x" },
    { REMOVE("nope", "x"), NULL, "Node 'nope' not found" },
    { REMOVE("one", "x"), NULL, "Dirty bitmap 'x' not found" },
    { CLEAR("nope", "x"), NULL, "Node 'nope' not found" },
    { ENABLE("one", ""), NULL, "Dirty bitmap '' not found" },
    { DISABLE("one", "x"), NULL, "Dirty bitmap 'x' not found" },
    { REMOVE("one", "a") "," CLEAR("one", "a"), NULL,
      "Bitmap 'a' is currently in use by another operation and cannot be used" },
    { REMOVE("one", "a") "," REMOVE("one", "a"), NULL,
      "Bitmap 'a' is currently in use by another operation and cannot be used" },
    { REMOVE("one", "a") "," ADD("one", "a"), NULL, "Bitmap already exists: a" },
    { MERGE("nope", "a", "'x'"), NULL, "Node 'nope' not found" },
    { MERGE("one", "x", "'y'"), NULL, "Dirty bitmap 'x' not found" },
    { MERGE("one", "a", "'b','x'"), NULL, "Dirty bitmap 'x' not found" },
    { MERGE("one", "a", "{'node':'nope','name':'x'}"), NULL, "Node 'nope' not found" },
    { MERGE("one", "a", "{'node':'two','name':'x'}"), NULL, "Dirty bitmap 'x' not found" },
    { MERGE("one", "a", "{'node':'two','name':'c'},'x'"), NULL,
      "Bitmaps are of different sizes (destination size is 1048576, source size is 2097152) and "
      "can't be merged" },
    { ADD("nope", "x"), GROUPED, "Action 'block-dirty-bitmap-add' %" },
    { REMOVE("nope", "x"), GROUPED, "Action 'block-dirty-bitmap-remove' %" },
    { CLEAR("nope", "x"), GROUPED, "Action 'block-dirty-bitmap-clear' %" },
    { ENABLE("nope", "x"), GROUPED, "Action 'block-dirty-bitmap-enable' %" },
    { DISABLE("nope", "x"), GROUPED, "Action 'block-dirty-bitmap-disable' %" },
    { MERGE("nope", "x", ""), GROUPED, "Action 'block-dirty-bitmap-merge' %" },
    { ABORT "," ADD("one", "x"), GROUPED, "Transaction aborted using Abort action" },
    { ACT("abort", "'x':1"), NULL, "Parameter 'actions[0].data.x' is unexpected" },
    { ACT("nope", ""), NULL, "Parameter 'type' does not accept value 'nope'" },
    { "{'type':'abort'}", NULL, "Parameter 'actions[0].data' is missing" },
};

static void refusals_are_qemus(void)
{
    g_autofree char *before = NULL;

    two_disks();
    before = picture();
    for (size_t i = 0; i < G_N_ELEMENTS(refusals); i++) {
        const Refusal *refusal = &refusals[i];
        g_autofree char *after = NULL;
        g_auto(GStrv) parts = g_strsplit(refusal->words, "%", 2);
        g_autofree char *words = g_strjoinv(not_grouped, parts);

        refused(refusal->actions, refusal->more, words);
        after = picture();
        g_assert_cmpstr(before, ==, after);
    }
    delete_all();
}

static void nothing_to_do(void)
{
    GError *error = NULL;

    two_disks();
    succeeds("");
    succeeds(MERGE("one", "a", ""));
    g_assert_true(transaction("", GROUPED, &error));
    g_assert_true(transaction(CLEAR("one", "a"), "'properties':{}", &error));
    g_assert_true(
        transaction(CLEAR("one", "a"), "'properties':{'completion-mode':'individual'}", &error));
    delete_all();
}

/* --- drain --- */

typedef struct Stillness {
    const char *action;
    int one, two; /* which of the disks are drained for it */
} Stillness;

/* "one" has the enabled "a" and the disabled "b", "two" the disabled "c". */
static const Stillness still[] = {
    { ADD("one", "x"), 1, 0 },
    { ACT("block-dirty-bitmap-add", "'node':'one','name':'y','disabled':true"), 0, 0 },
    { REMOVE("one", "y"), 0, 0 },
    { REMOVE("one", "x"), 1, 0 },
    { CLEAR("one", "a"), 1, 0 },
    { CLEAR("one", "b"), 0, 0 },
    { MERGE("one", "a", "'b'"), 1, 0 },
    { MERGE("one", "b", "'a'"), 1, 0 },
    { MERGE("one", "b", "'b'"), 0, 0 },
    { MERGE("two", "c", "'c'"), 0, 0 },
    { DISABLE("one", "b"), 0, 0 },
    { DISABLE("one", "a") "," ENABLE("two", "c"), 1, 1 },
    { DISABLE("two", "c"), 0, 1 },
};

static void only_what_records_stands_still(void)
{
    two_disks();
    for (size_t i = 0; i < G_N_ELEMENTS(still); i++) {
        int one = memory_disk(node_find("one"))->quiet_begins;
        int two = memory_disk(node_find("two"))->quiet_begins;

        succeeds(still[i].action);
        g_assert_cmpint(memory_disk(node_find("one"))->quiet_begins, ==, one + still[i].one);
        g_assert_cmpint(memory_disk(node_find("two"))->quiet_begins, ==, two + still[i].two);
    }
    delete_all();
}

/* --- all or nothing --- */

static void later_actions_see_earlier_ones(void)
{
    two_disks();
    succeeds(ADD("one", "new") "," MERGE("one", "new", "'b'") "," DISABLE("one", "new") "," CLEAR(
        "one", "b") "," REMOVE("one", "b") "," ENABLE("two", "c"));
    g_assert_null(bitmap_find(node_find("one")->bitmaps, "b"));
    g_assert_cmpint(bitmap_dirty_bytes(bitmap("one", "new")), ==, 65536);
    g_assert_false(bitmap_is_enabled(bitmap("one", "new")));
    g_assert_true(bitmap_is_enabled(bitmap("two", "c")));
    delete_all();
}

/* The next checkpoint, and its undoing when the backup failed. */
static void a_failed_backup_is_taken_back(void)
{
    two_disks();
    succeeds(DISABLE("one", "a") "," ADD("one", "a2"));
    mark("one", 500000, 1);
    g_assert_cmpint(bitmap_dirty_bytes(bitmap("one", "a")), ==, 131072);
    g_assert_cmpint(bitmap_dirty_bytes(bitmap("one", "a2")), ==, 65536);
    succeeds(MERGE("one", "a", "'a2'") "," ENABLE("one", "a") "," REMOVE("one", "a2"));
    mark("one", MIB - 1, 1);
    g_assert_cmpint(bitmap_dirty_bytes(bitmap("one", "a")), ==, 4 * 65536);
    delete_all();
}

static void an_aborted_one_leaves_no_trace(void)
{
    static const char *const actions[] = {
        ADD("one", "x"),     CLEAR("one", "a"),        ENABLE("one", "b"), MERGE("one", "b", "'a'"),
        DISABLE("one", "a"), MERGE("one", "a", "'b'"), CLEAR("two", "c"),  ENABLE("two", "c"),
        REMOVE("two", "c"),  ADD("two", "y"),
    };
    enum {
        N = G_N_ELEMENTS(actions)
    };
    g_autofree char *before = NULL;

    two_disks();
    before = picture();
    for (size_t n = 0; n <= N; n++) {
        for (size_t first = 0; first < N; first++) {
            g_autoptr(GString) text = g_string_new(NULL);
            g_autofree char *after = NULL;

            for (size_t i = 0; i < n; i++) {
                const char *action = actions[(first + i) % N];

                if (first == 0 || !strstr(action, "remove")) {
                    g_string_append_printf(text, "%s,", action);
                }
            }
            g_string_append(text, ABORT);
            refused(text->str, NULL, "Transaction aborted using Abort action");
            after = picture();
            g_assert_cmpstr(before, ==, after);
        }
    }
    mark("two", 2 * MIB - 1, 1);
    mark("one", MIB - 1, 1);
    g_assert_cmpint(bitmap_dirty_bytes(bitmap("one", "a")), ==, 196608);
    g_assert_cmpint(bitmap_dirty_bytes(bitmap("one", "b")), ==, 65536);
    g_assert_cmpint(bitmap_dirty_bytes(bitmap("two", "c")), ==, 131072);
    delete_all();
}

/* --- filters --- */

#define INSERT                                                                                     \
    ACT("blockdev-filter-insert", "'options':{'driver':'copy-before-write','node-name':'cbw',"     \
                                  "'file':'one','target':'target'}")
#define TAKE_OUT(node) ACT("blockdev-filter-remove", "'node-name':'" node "'")

static void filters_join_bitmaps(void)
{
    BlockBackend *backend = backend_new("a test", PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL);
    g_autofree char *before = NULL, *after = NULL;

    two_disks();
    add_node(DISK, "target", MIB);
    g_assert_true(backend_attach(backend, node_find("one"), NULL));
    before = picture();
    refused(DISABLE("one", "a") "," INSERT "," ADD("cbw", "x") "," CLEAR("cbw", "x") "," ABORT,
            NULL, "Transaction aborted using Abort action");
    after = picture();
    g_assert_cmpstr(before, ==, after);
    g_assert_null(node_find("cbw"));
    g_assert_true(backend_node(backend) == node_find("one"));

    succeeds(DISABLE("one", "a") "," ADD("one", "a2") "," INSERT "," ADD("cbw", "x"));
    g_assert_true(backend_node(backend) == node_find("cbw"));
    refused(DISABLE("cbw", "x") "," TAKE_OUT("cbw") "," ABORT, NULL,
            "Transaction aborted using Abort action");
    g_assert_true(backend_node(backend) == node_find("cbw"));
    g_assert_true(bitmap_is_enabled(bitmap("cbw", "x")));
    succeeds(CLEAR("cbw", "x") "," TAKE_OUT("cbw") "," REMOVE("one", "a2") "," DISABLE("cbw", "x"));
    g_assert_true(backend_node(backend) == node_find("one"));
    g_assert_null(node_find("cbw"));
    backend_free(backend);
    delete_all();
}

/* --- one instant --- */

enum {
    BLOCK = 4096,
    BLOCKS = 64,
    WRITERS = 2,
    ROUNDS = 300
};

/* Writes each of its blocks of the first disk and, once that is acknowledged, of the second. */
typedef struct Writer {
    BlockBackend *backends[2];
    EventLoop *loop;
    int first;
    atomic_bool done;
    atomic_int *blocks_done;
} Writer;

static void coroutine_fn write_block(BlockBackend *backend, int block)
{
    uint8_t data[BLOCK] = { 1 };
    IoVector vec;

    iov_init_buf(&vec, data, BLOCK);
    g_assert_cmpint(backend_co_pwritev(backend, (int64_t)block * BLOCK, BLOCK, &vec, 0), ==, 0);
}

static void coroutine_fn writer_entry(void *opaque)
{
    Writer *writer = opaque;

    for (int block = writer->first; block < BLOCKS; block += WRITERS) {
        write_block(writer->backends[0], block);
        write_block(writer->backends[1], block);
        atomic_fetch_add(writer->blocks_done, 1);
        event_loop_notify(event_loop_main());
    }
    atomic_store(&writer->done, true);
    event_loop_notify(event_loop_main());
}

static void writer_init(Writer *writer, int number, atomic_int *blocks_done)
{
    static const char *const disks[] = { "one", "two" };

    writer->loop = event_loop_new(disks[number], NULL);
    writer->first = number;
    writer->blocks_done = blocks_done;
    for (int d = 0; d < 2; d++) {
        writer->backends[d] = backend_new("a writer", PERM_WRITE, PERM_ALL);
        g_assert_true(backend_attach(writer->backends[d], node_find(disks[d]), NULL));
    }
}

static void writer_done(Writer *writer)
{
    backend_free(writer->backends[0]);
    backend_free(writer->backends[1]);
    event_loop_free(writer->loop);
}

/* Of each block, both disks' writes came before the switch, or the first's did, or none. */
static void check_switch(int *ret_before)
{
    *ret_before = 0;
    for (int block = 0; block < BLOCKS; block++) {
        int64_t offset = (int64_t)block * BLOCK;
        bool one_before = bitmap_get(bitmap("one", "old"), offset);
        bool two_before = bitmap_get(bitmap("two", "old"), offset);

        g_assert_cmpint(one_before, !=, bitmap_get(bitmap("one", "new"), offset));
        g_assert_cmpint(two_before, !=, bitmap_get(bitmap("two", "new"), offset));
        g_assert_true(one_before || !two_before);
        *ret_before += one_before;
    }
}

#define ADD_FINE(node, name, more)                                                                 \
    ACT("block-dirty-bitmap-add", "'node':'" node "','name':'" name "','granularity':4096" more)

/* Clears that do nothing but take time, in which a write would slip in if it could. */
#define CLEAR_4   CLEAR("one", "x") "," CLEAR("one", "x") "," CLEAR("one", "x") "," CLEAR("one", "x")
#define TAKE_TIME CLEAR_4 "," CLEAR_4 "," CLEAR_4 "," CLEAR_4
#define THE_SWITCH                                                                                 \
    DISABLE("two", "old")                                                                          \
    "," TAKE_TIME "," ADD_FINE("one", "new", "") "," TAKE_TIME "," DISABLE(                        \
        "one", "old") "," ADD_FINE("two", "new", ",'disabled':true") "," ENABLE("two", "new")

/* All blocks are written once; somewhere in the middle the bitmaps are switched. */
static int play_round(Writer *writers, int switch_at)
{
    atomic_int *blocks_done = writers[0].blocks_done;
    int before;

    succeeds(ADD_FINE("one", "old", "") "," ADD_FINE("two", "old", "") "," ADD("one", "x"));
    atomic_store(blocks_done, 0);
    for (int w = 0; w < WRITERS; w++) {
        atomic_store(&writers[w].done, false);
        coroutine_start_on(writers[w].loop, writer_entry, &writers[w]);
    }
    while (atomic_load(blocks_done) < switch_at) {
        event_loop_poll(event_loop_main(), true);
    }
    refused(CLEAR("two", "old") "," DISABLE("one", "old") "," ABORT, NULL,
            "Transaction aborted using Abort action");
    succeeds(THE_SWITCH);
    for (int w = 0; w < WRITERS; w++) {
        event_loop_poll_until(event_loop_main(), &writers[w].done);
    }
    check_switch(&before);
    succeeds(REMOVE("one", "old") "," REMOVE("one", "new") "," REMOVE("one", "x") "," //
             REMOVE("two", "old") "," REMOVE("two", "new"));
    return before;
}

static void one_instant_for_all_disks(void)
{
    atomic_int blocks_done = 0;
    Writer writers[WRITERS];
    int in_the_middle = 0;

    add_node(DISK, "one", BLOCK * BLOCKS);
    add_node(DISK, "two", BLOCK * BLOCKS);
    for (int w = 0; w < WRITERS; w++) {
        writer_init(&writers[w], w, &blocks_done);
    }
    for (int round = 0; round < ROUNDS; round++) {
        int before = play_round(writers, round % (BLOCKS / 2));

        in_the_middle += before > 0 && before < BLOCKS;
    }
    g_assert_cmpint(in_the_middle, >, 0);
    for (int w = 0; w < WRITERS; w++) {
        writer_done(&writers[w]);
    }
    delete_all();
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    graph_drivers_register();
    g_test_add_func("/transaction/refusals-are-qemus", refusals_are_qemus);
    g_test_add_func("/transaction/nothing-to-do", nothing_to_do);
    g_test_add_func("/transaction/only-what-records-stands-still", only_what_records_stands_still);
    g_test_add_func("/transaction/later-actions-see-earlier-ones", later_actions_see_earlier_ones);
    g_test_add_func("/transaction/a-failed-backup-is-taken-back", a_failed_backup_is_taken_back);
    g_test_add_func("/transaction/an-aborted-one-leaves-no-trace", an_aborted_one_leaves_no_trace);
    g_test_add_func("/transaction/filters-join-bitmaps", filters_join_bitmaps);
    g_test_add_func("/transaction/one-instant-for-all-disks", one_instant_for_all_disks);
    return g_test_run();
}

/* SPDX-License-Identifier: MIT */
/*
 * Drain: what block/core/drain.c promises, by the numbers of its invariants.
 *
 * The hammer runs requests on several I/O threads while the main thread changes the graph; run it
 * under ThreadSanitizer: the plain `generation` of the disk is what it watches.
 */
#include "graph-drivers.h"
#include "util/error.h"
#include "util/event-loop.h"
#include "util/size.h"

#define DISK "{'driver':'null-co','node-name':'%s'}"
#define RAW  "{'driver':'raw','node-name':'%s','file':'%s'}"
#define CBW  "{'driver':'copy-before-write','node-name':'%s','file':'%s','target':'%s'}"

static EventLoop *new_loop(void)
{
    GError *error = NULL;
    EventLoop *loop = event_loop_new("test", &error);

    g_assert_no_error(error);
    return loop;
}

static BlockBackend *new_backend(BlockNode *node)
{
    BlockBackend *backend = backend_new("a test", PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL);
    GError *error = NULL;

    backend_attach(backend, node, &error);
    g_assert_no_error(error);
    return backend;
}

/* --- one request --- */

typedef struct Write {
    BlockBackend *backend;
    int ret;
    int order; /* the how-manieth that ended */
    atomic_int *ended;
    atomic_bool done;
} Write;

static void coroutine_fn write_entry(void *opaque)
{
    Write *write = opaque;
    uint8_t data[512] = { 1 };
    IoVector vec;

    iov_init_buf(&vec, data, sizeof(data));
    write->ret = backend_co_pwritev(write->backend, 0, sizeof(data), &vec, 0);
    write->order = write->ended ? atomic_fetch_add(write->ended, 1) : 0;
    atomic_store(&write->done, true);
    event_loop_notify(event_loop_main());
}

static void wait_done(Write *write)
{
    event_loop_poll_until(event_loop_main(), &write->done);
    g_assert_cmpint(write->ret, ==, 0);
}

static void set_flag(void *opaque)
{
    atomic_store((atomic_bool *)opaque, true);
    event_loop_notify(event_loop_main());
}

/* Go around the other loop a few times: what could run there has run. */
static void let_run(EventLoop *loop)
{
    for (int i = 0; i < 20; i++) {
        atomic_bool done = false;

        event_loop_call(loop, set_flag, &done);
        event_loop_poll_until(event_loop_main(), &done);
    }
}

static void start_write(EventLoop *loop, Write *write, BlockBackend *backend)
{
    *write = (Write){ .backend = backend };
    coroutine_start_on(loop, write_entry, write);
}

/* Begins once the request is in the driver. */
static void start_held_write(EventLoop *loop, Write *write, BlockBackend *backend, BlockNode *disk)
{
    atomic_store(&memory_disk(disk)->hold, true);
    start_write(loop, write, backend);
    while (!atomic_load(&memory_disk(disk)->inside)) {
        let_run(loop);
    }
}

static void release(void *opaque)
{
    atomic_store(&memory_disk(opaque)->hold, false);
}

/* --- invariants 1 to 3 --- */

static void test_waits_for_requests_inside(void)
{
    EventLoop *loop = new_loop();
    BlockNode *disk = add_node(DISK, "d");
    BlockBackend *backend = new_backend(add_node(RAW, "r", "d"));
    DrainSection *section;
    Write write;

    start_held_write(loop, &write, backend, disk);
    event_loop_call(event_loop_main(), release, disk);
    section = drain_begin_node(disk);
    g_assert_cmpint(atomic_load(&memory_disk(disk)->inside), ==, 0);
    drain_end(section);
    wait_done(&write);
    backend_free(backend);
    event_loop_free(loop);
    delete_all();
}

/* --- bitmaps --- */

/* A bitmap whose epoch was emptied by a look at it. */
static void make_untidy(BlockNode *disk)
{
    BitmapAddOptions options = { .name = "b", .granularity = 512 };

    g_assert_nonnull(bitmap_add(disk->bitmaps, &options, NULL, NULL));
    bitmap_list_mark(disk->bitmaps, 0, 4096);
    g_assert_cmpint(bitmap_dirty_bytes(bitmap_find(disk->bitmaps, "b")), ==, 4096);
    g_assert_true(bitmap_list_is_untidy(disk->bitmaps));
}

static void test_a_section_tidies_bitmaps(void)
{
    BlockNode *disk = add_node(DISK, "d");

    make_untidy(disk);
    drain_end(drain_begin_node(disk));
    g_assert_false(bitmap_list_is_untidy(disk->bitmaps));
    g_assert_cmpint(bitmap_dirty_bytes(bitmap_find(disk->bitmaps, "b")), >=, 4096);
    delete_all();
}

/* The driver of "d" has requests of its own, so nobody looks in passing whether it is idle. */
static void test_only_idle_bitmaps_are_tidied_in_passing(void)
{
    EventLoop *loop = new_loop();
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *raw = add_node(RAW, "r", "d");
    BlockBackend *backend = new_backend(raw);
    Write write;

    make_untidy(raw);
    make_untidy(disk);
    start_held_write(loop, &write, backend, disk);
    nodes_tidy_idle();
    g_assert_true(bitmap_list_is_untidy(raw->bitmaps));
    release(disk);
    wait_done(&write);
    while (bitmap_list_is_untidy(raw->bitmaps)) {
        let_run(loop); /* the write may still be on its way out of the door */
        nodes_tidy_idle();
    }
    g_assert_true(bitmap_list_is_untidy(disk->bitmaps));
    g_assert_cmpint(bitmap_dirty_bytes(bitmap_find(raw->bitmaps, "b")), >=, 4096);
    backend_free(backend);
    event_loop_free(loop);
    delete_all();
}

static void test_holds_back_in_the_order_of_arrival(void)
{
    EventLoop *loop = new_loop();
    BlockNode *disk = add_node(DISK, "d");
    BlockBackend *backend = new_backend(disk);
    DrainSection *section = drain_begin_node(disk);
    atomic_int ended = 0;
    Write writes[5];

    for (int i = 0; i < 5; i++) {
        writes[i] = (Write){ .backend = backend, .ended = &ended };
        coroutine_start_on(loop, write_entry, &writes[i]);
    }
    let_run(loop);
    g_assert_cmpint(atomic_load(&memory_disk(disk)->requests), ==, 0);
    drain_end(section);
    for (int i = 0; i < 5; i++) {
        wait_done(&writes[i]);
        g_assert_cmpint(writes[i].order, ==, i);
    }
    backend_free(backend);
    event_loop_free(loop);
    delete_all();
}

typedef struct Visit {
    BlockBackend *backend;
    atomic_bool inside;
} Visit;

static void coroutine_fn short_visit(void *opaque)
{
    Visit *visit = opaque;
    BlockBackend *backend = visit->backend;

    backend_co_enter(backend);
    atomic_store(&visit->inside, true);
    event_loop_notify(event_loop_main());
    coroutine_pause();
    backend_leave(backend);
}

/* The last one out does not touch the backend again (for AddressSanitizer). */
static void test_backend_is_freed_right_behind_the_last_request(void)
{
    EventLoop *loop = new_loop();
    BlockNode *disk = add_node(DISK, "d");
    Visit visit;

    for (int i = 0; i < 2000; i++) {
        BlockBackend *backend = new_backend(disk);

        visit.backend = backend;
        atomic_store(&visit.inside, false);
        coroutine_start_on(loop, short_visit, &visit);
        event_loop_poll_until(event_loop_main(), &visit.inside);
        backend_free(backend);
    }
    event_loop_free(loop);
    delete_all();
}

/* --- invariant 4 --- */

static void test_nested_sections_open_with_the_last(void)
{
    EventLoop *loop = new_loop();
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *raw = add_node(RAW, "r", "d");
    BlockBackend *backend = new_backend(raw);
    DrainSection *first = drain_begin_node(disk);
    DrainSection *second = drain_begin_node(raw);
    Write write;

    start_write(loop, &write, backend);
    g_assert_cmpuint(raw->drain_depth, ==, 2);
    g_assert_cmpuint(disk->drain_depth, ==, 1);
    drain_end(first);
    let_run(loop);
    g_assert_cmpint(atomic_load(&memory_disk(disk)->requests), ==, 0);
    g_assert_cmpuint(disk->drain_depth, ==, 0);
    drain_end(second);
    wait_done(&write);
    backend_free(backend);
    event_loop_free(loop);
    delete_all();
}

static void test_covers_all_users_but_nobody_else(void)
{
    EventLoop *loop = new_loop();
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *other = add_node(DISK, "o");
    BlockBackend *left = new_backend(add_node(RAW, "left", "d"));
    BlockBackend *right = new_backend(add_node(RAW, "right", "d"));
    BlockBackend *apart = new_backend(other);
    DrainSection *section = drain_begin_node(disk);
    Write writes[3];

    start_write(loop, &writes[0], left);
    start_write(loop, &writes[1], right);
    start_write(loop, &writes[2], apart);
    wait_done(&writes[2]);
    let_run(loop);
    g_assert_cmpint(atomic_load(&memory_disk(disk)->requests), ==, 0);
    drain_end(section);
    wait_done(&writes[0]);
    wait_done(&writes[1]);

    section = drain_begin_all();
    g_assert_true(disk->drain_depth == 1 && other->drain_depth == 1);
    drain_end(section);
    backend_free(left);
    backend_free(right);
    backend_free(apart);
    event_loop_free(loop);
    delete_all();
}

static void test_backend_attached_inside_is_closed(void)
{
    EventLoop *loop = new_loop();
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *raw = add_node(RAW, "r", "d");
    DrainSection *section = drain_begin_node(disk);
    BlockBackend *backend = new_backend(raw);
    Write write;

    start_write(loop, &write, backend);
    let_run(loop);
    g_assert_cmpint(atomic_load(&memory_disk(disk)->requests), ==, 0);
    drain_end(section);
    wait_done(&write);
    backend_free(backend);
    event_loop_free(loop);
    delete_all();
}

static void test_backend_of_a_parent_added_inside_is_closed(void)
{
    EventLoop *loop = new_loop();
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *raw = add_node("{'driver':'raw','node-name':'r','file':{'driver':'null-co'}}");
    BlockBackend *backend = new_backend(raw);
    DrainSection *both = drain_begin((BlockNode *[]){ disk, raw }, 2);
    DrainSection *inner = drain_begin_node(disk);
    UndoStack *undo = undo_stack_new();
    Write write;

    g_assert_true(child_set_node(raw->file, disk, undo, NULL));
    undo_commit(undo);
    drain_end(both);
    start_write(loop, &write, backend);
    let_run(loop);
    g_assert_cmpint(atomic_load(&memory_disk(disk)->requests), ==, 0);
    drain_end(inner);
    wait_done(&write);
    g_assert_cmpint(atomic_load(&memory_disk(disk)->requests), ==, 1);
    backend_free(backend);
    event_loop_free(loop);
    delete_all();
}

static void test_backend_freed_or_moved_inside(void)
{
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *other = add_node(DISK, "o");
    BlockBackend *gone = new_backend(disk);
    BlockBackend *moved = new_backend(disk);
    DrainSection *section = drain_begin_node(disk);
    EventLoop *loop = new_loop();
    Write write;

    backend_free(gone);
    backend_detach(moved);
    g_assert_true(backend_attach(moved, other, NULL));
    start_write(loop, &write, moved);
    let_run(loop);
    g_assert_cmpint(atomic_load(&memory_disk(other)->requests), ==, 0);
    drain_end(section);
    wait_done(&write);
    backend_free(moved);
    event_loop_free(loop);
    delete_all();
}

static void free_backend(void *opaque)
{
    BlockBackend **backend = opaque;

    backend_free(g_steal_pointer(backend));
}

/* What runs while drain_begin() polls may free another backend of the section. */
static void test_backend_freed_while_waiting(void)
{
    EventLoop *loop = new_loop();
    BlockNode *disk = add_node(DISK, "d");
    BlockBackend *busy = new_backend(disk);
    BlockBackend *gone = new_backend(disk);
    DrainSection *section;
    Write write;

    start_held_write(loop, &write, busy, disk);
    event_loop_call(event_loop_main(), release, disk);
    event_loop_call(event_loop_main(), free_backend, &gone);
    section = drain_begin_node(disk);
    drain_end(section);
    g_assert_null(gone);
    wait_done(&write);
    backend_free(busy);
    event_loop_free(loop);
    delete_all();
}

static void test_drivers_are_told_once(void)
{
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *raw = add_node(RAW, "r", "d");
    MemoryDisk *state = memory_disk(disk);
    int begins = state->quiet_begins;
    DrainSection *first = drain_begin_node(disk);
    DrainSection *second = drain_begin((BlockNode *[]){ raw, disk }, 2);

    g_assert_cmpint(state->quiet_begins - begins, ==, 1);
    drain_end(first);
    g_assert_true(disk->driver_quiet);
    drain_end(second);
    g_assert_cmpint(state->quiet_ends, ==, state->quiet_begins);
    delete_all();
}

/* Also when one of them is not covered, but beneath what is. */
static void test_drivers_are_hurried_once(void)
{
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *raw = add_node(RAW, "r", "d");
    MemoryDisk *state = memory_disk(disk);
    int begins = state->hurry_begins;
    DrainSection *first = drain_begin_node(raw);
    HurrySection *second = hurry_begin_all();

    g_assert_cmpint(state->hurry_begins - begins, ==, 1);
    drain_end(first);
    g_assert_true(disk->driver_hurried);
    first = drain_begin_node(disk);
    hurry_end(second);
    g_assert_cmpint(state->hurry_begins - begins, ==, 1);
    g_assert_cmpint(state->hurry_ends, <, state->hurry_begins);
    drain_end(first);
    g_assert_cmpint(state->hurry_ends, ==, state->hurry_begins);
    g_assert_cmpuint(disk->hurry_depth, ==, 0);
    delete_all();
}

/* --- invariant 5 --- */

/* Two disks are written in turns by one client; a section over both never falls between the two
 * halves of its instant. */
typedef struct Pair {
    BlockBackend *backend[2];
    int64_t written[2]; /* on the client's loop */
    atomic_bool stop;
    atomic_bool done;
} Pair;

static void coroutine_fn pair_entry(void *opaque)
{
    Pair *pair = opaque;
    int64_t count = 0;

    while (!atomic_load(&pair->stop)) {
        IoVector vec;

        count++;
        for (int i = 0; i < 2; i++) {
            iov_init_buf(&vec, &count, sizeof(count));
            g_assert_cmpint(backend_co_pwritev(pair->backend[i], 0, sizeof(count), &vec, 0), ==, 0);
        }
    }
    atomic_store(&pair->done, true);
    event_loop_notify(event_loop_main());
}

static int64_t disk_value(BlockNode *disk)
{
    int64_t value;

    memcpy(&value, memory_disk(disk)->data, sizeof(value));
    return value;
}

static void test_one_instant_over_two_disks(void)
{
    EventLoop *loop = new_loop();
    BlockNode *disks[2] = { add_node(DISK, "d0"), add_node(DISK, "d1") };
    Pair pair = { .backend = { new_backend(disks[0]), new_backend(disks[1]) } };

    coroutine_start_on(loop, pair_entry, &pair);
    for (int i = 0; i < 300; i++) {
        DrainSection *section = drain_begin(disks, 2);
        int64_t first = disk_value(disks[0]), second = disk_value(disks[1]);

        /* The client writes the second after the first is acknowledged. */
        g_assert_true(first == second || first == second + 1);
        drain_end(section);
        let_run(loop);
    }
    atomic_store(&pair.stop, true);
    event_loop_poll_until(event_loop_main(), &pair.done);
    backend_free(pair.backend[0]);
    backend_free(pair.backend[1]);
    event_loop_free(loop);
    delete_all();
}

static void test_filter_goes_over_waiting_requests(void)
{
    EventLoop *loop = new_loop();
    BlockNode *disk = add_node(DISK, "d");
    BlockNode *target = add_node(DISK, "t");
    BlockBackend *backend = new_backend(disk);
    g_autoptr(BlockdevOptions) options = NULL;
    DrainSection *section = drain_begin_node(disk);
    Write write;

    options = parse_options("{'driver':'copy-before-write','node-name':'c','file':'d',"
                            "'target':'t'}");
    start_write(loop, &write, backend);
    let_run(loop);
    g_assert_nonnull(node_insert_filter(options, NULL, NULL));
    g_assert_cmpint(atomic_load(&memory_disk(target)->requests), ==, 0);
    drain_end(section);
    wait_done(&write);
    g_assert_cmpint(atomic_load(&memory_disk(target)->requests), ==, 1);
    g_assert_cmpint(atomic_load(&memory_disk(disk)->requests), ==, 1);
    backend_free(backend);
    event_loop_free(loop);
    delete_all();
}

/* --- the hammer --- */

#define THREADS 3
#define CLIENTS 3 /* a thread */
#define ROUNDS  400

typedef struct Hammer {
    EventLoop *loops[THREADS];
    BlockBackend *backends[2];
    BlockNode *disk;
    atomic_bool stop;
    atomic_int running;
    atomic_bool all_done;
    GRand *rand;
} Hammer;

typedef struct Client {
    Hammer *hammer;
    BlockBackend *backend;
    int64_t offset; /* each has a block of its own */
    int64_t count;
} Client;

static void coroutine_fn client_entry(void *opaque)
{
    Client *client = opaque;
    Hammer *hammer = client->hammer;
    int64_t value, back;
    IoVector vec;

    while (!atomic_load(&hammer->stop)) {
        value = ++client->count;
        iov_init_buf(&vec, &value, sizeof(value));
        g_assert_cmpint(backend_co_pwritev(client->backend, client->offset, sizeof(value), &vec, 0),
                        ==, 0);
        iov_init_buf(&vec, &back, sizeof(back));
        g_assert_cmpint(backend_co_preadv(client->backend, client->offset, sizeof(back), &vec, 0),
                        ==, 0);
        g_assert_cmpint(back, ==, value);
    }
    if (atomic_fetch_sub(&hammer->running, 1) == 1) {
        atomic_store(&hammer->all_done, true);
        event_loop_notify(event_loop_main());
    }
}

static void change_while_drained(Hammer *hammer)
{
    MemoryDisk *disk = memory_disk(hammer->disk);
    DrainSection *section = drain_begin_node(hammer->disk);

    g_assert_cmpint(atomic_load(&disk->inside), ==, 0);
    disk->generation++;
    disk->data[MiB - 1]++;
    drain_end(section);
}

static void toggle_filter(Hammer *hammer, bool take_back)
{
    g_autoptr(BlockdevOptions) options = NULL;
    UndoStack *undo = undo_stack_new();
    bool ok;

    options = parse_options("{'driver':'copy-before-write','node-name':'c','file':'d',"
                            "'target':'t'}");
    ok = node_find("c") ? node_remove_filter("c", undo, NULL)
                        : node_insert_filter(options, undo, NULL) != NULL;
    g_assert_true(ok);
    undo_finish(undo, !take_back);
}

static void one_more_backend(Hammer *hammer)
{
    BlockBackend *backend = new_backend(node_find("r"));

    g_assert_true(backend_set_perm(backend, PERM_CONSISTENT_READ, PERM_ALL, NULL));
    backend_free(backend);
}

static void reopen_raw(Hammer *hammer)
{
    GError *error = NULL;
    const char *file = node_find("c") ? "c" : "d";

    reopen(&error, "[{'driver':'raw','node-name':'r','file':'%s','discard':'%s'}]", file,
           g_rand_boolean(hammer->rand) ? "unmap" : "ignore");
    g_assert_no_error(error);
}

static void toggle_bitmap(Hammer *hammer)
{
    BlockNode *raw = node_find("r");
    DirtyBitmap *bitmap = bitmap_find(raw->bitmaps, "b");
    DrainSection *section = drain_begin_node(raw);
    BitmapAddOptions options = { .name = "b", .granularity = 4096 };

    if (bitmap) {
        g_assert_true(bitmap_remove(bitmap, NULL, NULL));
    } else {
        g_assert_nonnull(bitmap_add(raw->bitmaps, &options, NULL, NULL));
    }
    drain_end(section);
}

static void grow(Hammer *hammer)
{
    int64_t size = g_rand_int_range(hammer->rand, 1, 4) * MiB;

    g_assert_true(node_resize(node_find("r"), size, NULL));
}

static void hammer_round(Hammer *hammer)
{
    switch (g_rand_int_range(hammer->rand, 0, 7)) {
    case 0:
        toggle_filter(hammer, false);
        break;
    case 1:
        toggle_filter(hammer, true);
        break;
    case 2:
        one_more_backend(hammer);
        break;
    case 3:
        reopen_raw(hammer);
        break;
    case 4:
        toggle_bitmap(hammer);
        break;
    case 5:
        grow(hammer);
        break;
    default:
        change_while_drained(hammer);
        break;
    }
}

static uint32_t test_seed(void)
{
    const char *text = g_getenv("MERINO_TEST_SEED");
    uint32_t seed = text ? strtoul(text, NULL, 0) : g_random_int();

    g_test_message("MERINO_TEST_SEED=%u", seed);
    return seed;
}

static void hammer_start(Hammer *hammer, Client clients[THREADS * CLIENTS])
{
    for (int i = 0; i < THREADS; i++) {
        hammer->loops[i] = new_loop();
    }
    atomic_store(&hammer->running, THREADS * CLIENTS);
    for (int i = 0; i < THREADS * CLIENTS; i++) {
        clients[i] = (Client){ hammer, hammer->backends[i % 2], i * 4096, 0 };
        coroutine_start_on(hammer->loops[i % THREADS], client_entry, &clients[i]);
    }
}

static void hammer_stop(Hammer *hammer)
{
    atomic_store(&hammer->stop, true);
    event_loop_poll_until(event_loop_main(), &hammer->all_done);
    for (int i = 0; i < THREADS; i++) {
        event_loop_free(hammer->loops[i]);
    }
}

static void test_hammer(void)
{
    Client clients[THREADS * CLIENTS];
    Hammer hammer = { .rand = g_rand_new_with_seed(test_seed()) };

    hammer.disk = add_node(DISK, "d");
    add_node(DISK, "t");
    hammer.backends[0] = new_backend(hammer.disk);
    hammer.backends[1] = new_backend(add_node(RAW, "r", "d"));
    memory_disk(node_find("t"))->data = g_realloc(memory_disk(node_find("t"))->data, 4 * MiB);
    node_set_size(node_find("t"), 4 * MiB);
    hammer_start(&hammer, clients);
    for (int i = 0; i < ROUNDS; i++) {
        hammer_round(&hammer);
        event_loop_poll(event_loop_main(), false);
    }
    hammer_stop(&hammer);
    for (int i = 0; i < THREADS * CLIENTS; i++) {
        g_assert_cmpint(clients[i].count, >, 0);
    }
    backend_free(hammer.backends[0]);
    backend_free(hammer.backends[1]);
    g_rand_free(hammer.rand);
    delete_all();
}

/* --- a planted fault: a client that goes in beside the door is found --- */

static void coroutine_fn trespasser_entry(void *opaque)
{
    Client *client = opaque;
    uint8_t data[512] = { 0 };

    while (!atomic_load(&client->hammer->stop)) {
        child_co_pwrite(backend_root(client->backend), 0, sizeof(data), data, 0);
    }
    atomic_store(&client->hammer->all_done, true);
    event_loop_notify(event_loop_main());
}

static int count_trespasses(CoroutineFn *entry)
{
    BlockNode *disk = add_node(DISK, "d");
    BlockBackend *backend = new_backend(disk);
    Hammer hammer = { .running = 1, .disk = disk };
    Client client = { &hammer, backend, 0, 0 };
    EventLoop *loop = new_loop();
    int found;

    coroutine_start_on(loop, entry, &client);
    while (!atomic_load(&memory_disk(disk)->requests)) {
        let_run(loop);
    }
    for (int i = 0; i < 20; i++) {
        DrainSection *section = drain_begin_node(disk);

        atomic_store(&memory_disk(disk)->frozen, true);
        let_run(loop);
        atomic_store(&memory_disk(disk)->frozen, false);
        drain_end(section);
    }
    atomic_store(&hammer.stop, true);
    event_loop_poll_until(event_loop_main(), &hammer.all_done);
    found = atomic_load(&memory_disk(disk)->trespasses);
    event_loop_free(loop);
    backend_free(backend);
    delete_all();
    return found;
}

static void test_planted_trespasser_is_found(void)
{
    g_assert_cmpint(count_trespasses(client_entry), ==, 0);
    g_assert_cmpint(count_trespasses(trespasser_entry), >, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    graph_drivers_register();
    g_test_add_func("/drain/bitmaps/section", test_a_section_tidies_bitmaps);
    g_test_add_func("/drain/bitmaps/in-passing", test_only_idle_bitmaps_are_tidied_in_passing);
    g_test_add_func("/drain/waits-for-requests-inside", test_waits_for_requests_inside);
    g_test_add_func("/drain/holds-back-in-the-order-of-arrival",
                    test_holds_back_in_the_order_of_arrival);
    g_test_add_func("/drain/backend-is-freed-right-behind-the-last-request",
                    test_backend_is_freed_right_behind_the_last_request);
    g_test_add_func("/drain/nested-sections-open-with-the-last",
                    test_nested_sections_open_with_the_last);
    g_test_add_func("/drain/covers-all-users-but-nobody-else",
                    test_covers_all_users_but_nobody_else);
    g_test_add_func("/drain/backend-attached-inside-is-closed",
                    test_backend_attached_inside_is_closed);
    g_test_add_func("/drain/backend-of-a-parent-added-inside-is-closed",
                    test_backend_of_a_parent_added_inside_is_closed);
    g_test_add_func("/drain/backend-freed-or-moved-inside", test_backend_freed_or_moved_inside);
    g_test_add_func("/drain/backend-freed-while-waiting", test_backend_freed_while_waiting);
    g_test_add_func("/drain/drivers-are-told-once", test_drivers_are_told_once);
    g_test_add_func("/drain/drivers-are-hurried-once", test_drivers_are_hurried_once);
    g_test_add_func("/drain/one-instant-over-two-disks", test_one_instant_over_two_disks);
    g_test_add_func("/drain/filter-goes-over-waiting-requests",
                    test_filter_goes_over_waiting_requests);
    g_test_add_func("/drain/hammer", test_hammer);
    g_test_add_func("/drain/planted-trespasser-is-found", test_planted_trespasser_is_found);
    return g_test_run();
}

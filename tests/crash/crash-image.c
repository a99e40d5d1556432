/* SPDX-License-Identifier: MIT */
#include "crash-image.h"
#include "block/drivers.h"
#include "crash-disk.h"
#include "qapi/codec.h"
#include "qapi/json.h"
#include "util/event-loop.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A hook of the driver, run to its end in a coroutine of the main loop. */
typedef struct Task {
    int (*fn)(struct Task *task);
    BlockNode *node;
    const BlockdevCreateOptions *create;
    BlockCheckResult *result;
    unsigned fix;
    const SnapshotInfo *snapshot;
    const char *id;
    GError *error;
    int ret;
    bool done;
} Task;

void crash_image_init(void)
{
    GSource *source = event_loop_attach(event_loop_main());

    g_source_unref(source);
    crash_disk_register();
    qcow2_driver_register();
}

static void *parse(const QapiType *type, const char *text)
{
    g_autofree char *copy = g_strdelimit(g_strdup(text), "'", '"');
    g_autoptr(GError) error = NULL;
    json_t *json = qapi_json_parse(copy, strlen(copy), &error);
    void *value;

    g_assert_no_error(error);
    value = qapi_decode(type, json, QAPI_DECODE_JSON, &error);
    g_assert_no_error(error);
    json_decref(json);
    return value;
}

static void coroutine_fn run_task(void *opaque)
{
    Task *task = opaque;

    task->ret = task->fn(task);
    task->done = true;
}

/* Creation needs GLib's main context to run. */
static int run(Task *task)
{
    coroutine_start(run_task, task);
    while (!task->done) {
        g_main_context_iteration(NULL, TRUE);
    }
    return task->ret;
}

static int coroutine_fn do_create(Task *task)
{
    return driver_find("qcow2")->co_create(task->create, &task->error);
}

GByteArray *crash_image_create(const char *options)
{
    g_autoptr(GByteArray) empty = g_byte_array_new();
    g_autofree char *text =
        g_strdup_printf("{'driver': 'qcow2', 'file': {'driver': 'null-co'}, %s}", options);
    BlockdevCreateOptions *create = parse(&qapi_type_BlockdevCreateOptions, text);
    Task task = { .fn = do_create, .create = create };

    crash_disk_load(empty, 0);
    run(&task);
    g_assert_no_error(task.error);
    blockdev_create_options_free(create);
    return crash_disk_content();
}

BlockBackend *crash_image_open(GError **error)
{
    BlockdevOptions *options =
        parse(&qapi_type_BlockdevOptions, "{'driver': 'qcow2', 'node-name': 'image',"
                                          " 'discard': 'unmap',"
                                          " 'file': {'driver': 'null-co', 'node-name': 'disk',"
                                          "          'discard': 'unmap'}}");
    BlockBackend *user = NULL;

    if (node_add(options, error)) {
        user = backend_new("the guest", PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL);
        if (!backend_attach(user, node_find("image"), error)) {
            backend_free(user);
            node_delete("image", NULL);
            user = NULL;
        }
    }
    blockdev_options_free(options);
    return user;
}

void crash_image_close(BlockBackend *user)
{
    g_autoptr(GError) error = NULL;

    backend_free(user);
    node_delete("image", &error);
    g_assert_no_error(error);
}

/* --- reading --- */

typedef struct ReadAll {
    BlockBackend *user;
    uint8_t *data;
    int ret;
} ReadAll;

static void coroutine_fn read_all(void *opaque)
{
    ReadAll *all = opaque;
    IoVector vec;

    iov_init_buf(&vec, all->data, backend_size(all->user));
    all->ret = backend_co_preadv(all->user, 0, backend_size(all->user), &vec, 0);
    iov_done(&vec);
}

uint8_t *crash_image_read(BlockBackend *user)
{
    ReadAll all = { user, g_malloc(backend_size(user)), 0 };

    coroutine_run(read_all, &all);
    if (all.ret < 0) {
        g_clear_pointer(&all.data, g_free);
    }
    return all.data;
}

/* --- as a whole --- */

static int run_drained(Task *task, BlockBackend *user)
{
    DrainSection *section;
    int ret;

    task->node = backend_node(user);
    section = drain_begin_node(task->node);
    ret = run(task);
    drain_end(section);
    if (task->error) {
        g_printerr("# %s\n", task->error->message);
        g_clear_error(&task->error);
    }
    return ret;
}

static void print_finding(const char *line, void *opaque)
{
    if (!g_str_has_prefix(line, "Leaked") && !g_str_has_prefix(line, "Repairing")) {
        g_printerr("# %s\n", line);
    }
}

static int coroutine_fn do_check(Task *task)
{
    return task->node->driver->co_check(task->node, task->result, task->fix, &task->error);
}

int64_t crash_image_check(BlockBackend *user, unsigned fix)
{
    BlockCheckResult result = { .message = print_finding };
    Task task = { .fn = do_check, .result = &result, .fix = fix };

    return run_drained(&task, user) < 0 ? 1 : result.corruptions + result.check_errors;
}

int64_t crash_image_check_by_qemu(const GByteArray *content)
{
    static int have = -1;
    g_autofree char *path = g_strdup_printf("%s/crash-%d.qcow2", g_get_tmp_dir(), getpid());
    bool dirty = content->len > 79 && (content->data[79] & 1);
    g_autofree char *command = g_strdup_printf("qemu-img check %s -f qcow2 %s >%s.out 2>&1",
                                               dirty ? "-r all" : "", path, path);
    g_autofree char *output = g_strconcat(path, ".out", NULL);
    int status;

    if (have < 0) {
        have = system("qemu-img --version >/dev/null 2>&1") == 0;
    }
    if (!have) {
        return 0;
    }
    g_assert_true(g_file_set_contents(path, (const char *)content->data, content->len, NULL));
    status = system(command) >> 8;
    if (status != 0 && status != 3) { /* 3: leaks alone */
        g_autofree char *text = NULL;

        g_file_get_contents(output, &text, NULL, NULL);
        g_printerr("# qemu-img check ends with %d and says\n%s", status, text);
    }
    unlink(path);
    unlink(output);
    return status != 0 && status != 3;
}

static int coroutine_fn do_snapshot(Task *task)
{
    return task->node->driver->co_snapshot_create(task->node, task->snapshot, &task->error);
}

bool crash_image_snapshot(BlockBackend *user, const char *name)
{
    SnapshotInfo info = { .name = (char *)name, .id = (char *)"" };
    Task task = { .fn = do_snapshot, .snapshot = &info };

    return run_drained(&task, user) == 0;
}

static int coroutine_fn do_delete(Task *task)
{
    return task->node->driver->co_snapshot_delete(task->node, task->id, &task->error);
}

bool crash_image_delete_snapshots(BlockBackend *user)
{
    BlockNode *node = backend_node(user);
    SnapshotInfoList *list = node->driver->snapshot_list(node);
    bool ok = true;

    for (size_t i = 0; i < list->len && ok; i++) {
        Task task = { .fn = do_delete, .id = list->items[i]->id };

        ok = run_drained(&task, user) == 0;
    }
    snapshot_info_list_free(list);
    return ok;
}

/* SPDX-License-Identifier: MIT */
#include "crash-image.h"
#include "block/drivers.h"
#include "block/image.h"
#include "qapi/codec.h"
#include "qapi/json.h"
#include "util/event-loop.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

/* --- making --- */

typedef struct Creation {
    const BlockdevCreateOptions *options;
    GError *error;
    bool done;
} Creation;

static void coroutine_fn create(void *opaque)
{
    Creation *creation = opaque;

    driver_find("qcow2")->co_create(creation->options, &creation->error);
    creation->done = true;
}

CrashContent *crash_image_create(const CrashShape *shape)
{
    g_autoptr(CrashContent) empty = crash_content_new();
    const char *data = ", 'data-file': {'driver': 'null-co', 'node-name': 'data'}";
    g_autofree char *text = g_strdup_printf(
        "{'driver': 'qcow2', 'file': {'driver': 'null-co'}, 'size': %" PRId64 ", %s%s}",
        shape->size, shape->create, shape->data_file ? data : "");
    BlockdevCreateOptions *options = parse(&qapi_type_BlockdevCreateOptions, text);
    Creation creation = { .options = options };

    crash_disk_set_base(shape->base);
    crash_disk_load(empty, 0);
    coroutine_start(create, &creation);
    while (!creation.done) { /* it needs GLib's main context to run */
        g_main_context_iteration(NULL, TRUE);
    }
    g_assert_no_error(creation.error);
    blockdev_create_options_free(options);
    return crash_disk_content();
}

/* --- opening --- */

static BlockdevOptions *node_options(const CrashShape *shape, bool read_only)
{
    const char *data = ", 'data-file': {'driver': 'null-co', 'node-name': 'data',"
                       "                'discard': 'unmap'}";
    const char *base = ", 'backing': {'driver': 'null-co', 'node-name': 'base',"
                       "              'read-only': true}";
    g_autofree char *text = g_strdup_printf(
        "{'driver': 'qcow2', 'node-name': 'image', 'discard': 'unmap', 'read-only': %s,"
        " 'file': {'driver': 'null-co', 'node-name': 'disk', 'discard': 'unmap'}%s%s%s}",
        read_only ? "true" : "false", shape->data_file ? data : "", shape->base ? base : "",
        shape->open ?: "");

    return parse(&qapi_type_BlockdevOptions, text);
}

BlockBackend *crash_image_open(const CrashShape *shape, GError **error)
{
    BlockdevOptions *options = node_options(shape, false);
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

bool crash_image_reopen(const CrashShape *shape, BlockBackend *user, bool read_only)
{
    BlockdevOptions *options = node_options(shape, read_only);
    BlockdevOptionsList list = { .len = 1, .items = &options };
    bool ok;

    backend_set_perm(user, PERM_CONSISTENT_READ, PERM_ALL, NULL);
    ok = node_reopen(&list, NULL);
    blockdev_options_free(options);
    if (!backend_node(user)->read_only) {
        ok = backend_set_perm(user, PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL, NULL) && ok;
    }
    return ok;
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

/* --- checking --- */

/* An entry that may be written in place and does not say so. */
static bool lacks_copied_flag(const char *line)
{
    return strstr(line, "ERROR OFLAG_COPIED") && g_str_has_suffix(line, " refcount=1");
}

typedef struct Findings {
    int copied; /* flags that lack */
    bool version_2;
} Findings;

static void take_finding(const char *line, void *opaque)
{
    Findings *findings = opaque;

    if (findings->version_2 && lacks_copied_flag(line)) {
        findings->copied++;
    } else if (!g_str_has_prefix(line, "Leaked") && !g_str_has_prefix(line, "Repairing")) {
        g_printerr("# %s\n", line);
    }
}

static int64_t check(BlockBackend *user, unsigned fix, Findings *findings)
{
    BlockCheckResult result = { .message = take_finding, .opaque = findings };
    g_autoptr(GError) error = NULL;

    if (node_check(backend_node(user), &result, fix, &error) < 0) {
        g_printerr("# %s\n", error->message);
        return 1;
    }
    return result.corruptions + result.check_errors;
}

int64_t crash_image_check(const CrashShape *shape, BlockBackend *user)
{
    Findings findings = { .version_2 = shape->version == 2 };
    int64_t faults = check(user, 0, &findings);

    if (findings.copied && faults == findings.copied) {
        faults = check(user, CHECK_FIX_ERRORS, &findings);
    }
    return faults;
}

static bool have_qemu(void)
{
    static int have = -1;

    if (have < 0) {
        have = system("qemu-img --version >/dev/null 2>&1") == 0;
    }
    return have;
}

static bool is_dirty(const GByteArray *image)
{
    return image->data[7] >= 3 && (image->data[79] & 1);
}

static bool is_lazy(const GByteArray *image)
{
    return image->data[7] >= 3 && (image->data[87] & 1);
}

/* What it said, but for leaks and for flags that may be missing. Caller frees; NULL: nothing. */
static char *real_complaints(const char *output, bool flags_may_lack)
{
    g_auto(GStrv) lines = g_strsplit(output, "\n", -1);
    g_autoptr(GString) left = g_string_new(NULL);

    for (char **line = lines; *line; line++) {
        if (strstr(*line, "ERROR") && !(flags_may_lack && lacks_copied_flag(*line))) {
            g_string_append_printf(left, "# %s\n", *line);
        }
    }
    return left->len ? g_strdup(left->str) : NULL;
}

/* An image with lazy refcounts is mended when it is opened; where the dirty flag stands for a
 * snapshot's sake, or could not stand (Q5), copied flags may be missing and nothing else. */
int64_t crash_image_check_by_qemu(const CrashShape *shape, const CrashContent *content)
{
    const GByteArray *image = content->disk[0];
    bool mend = is_dirty(image) && is_lazy(image);
    bool flags_may_lack = is_dirty(image) || image->data[7] < 3;
    g_autofree char *path = g_strdup_printf("%s/crash-%d.qcow2", g_get_tmp_dir(), getpid());
    g_autofree char *command = g_strdup_printf(
        "qemu-img check %s --image-opts driver=qcow2,file.driver=file,file.filename=%s%s 2>&1",
        mend ? "-r all" : "", path, shape->data_file ? ",data-file.driver=null-co" : "");
    const char *const argv[] = { "/bin/sh", "-c", command, NULL };
    g_autofree char *output = NULL, *complaints = NULL;
    int status;

    if (!have_qemu()) {
        return 0;
    }
    g_assert_true(g_file_set_contents(path, (const char *)image->data, image->len, NULL));
    g_assert_true(
        g_spawn_sync(NULL, (char **)argv, NULL, 0, NULL, NULL, &output, NULL, &status, NULL));
    unlink(path);
    status >>= 8;
    if (status == 0 || status == 3) { /* 3: leaks alone */
        return 0;
    }
    complaints = real_complaints(output, flags_may_lack && status == 2);
    if (status != 2 || complaints) {
        g_printerr("# qemu-img check ends with %d and says\n%s", status, output);
    }
    return status != 2 || complaints;
}

/* SPDX-License-Identifier: MIT */
#include "qcow2-harness.h"
#include "block/drivers.h"

#include <jansson.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

void qcow2_harness_init(int *argc, char ***argv)
{
    io_harness_init(argc, argv, false);
    qcow2_driver_register();
}

bool qcow2_need_qemu(void)
{
    g_autofree char *program = g_find_program_in_path("qemu-img");

    if (!program) {
        g_test_skip("qemu-img is not installed");
    }
    return program != NULL;
}

static char *run(bool *ret_ok, const char *arguments)
{
    g_autofree char *command = g_strconcat("qemu-img ", arguments, NULL);
    g_autofree char *errors = NULL;
    g_autoptr(GError) error = NULL;
    char *output = NULL;
    int status = 0;

    g_spawn_command_line_sync(command, &output, &errors, &status, &error);
    g_assert_no_error(error);
    *ret_ok = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    if (!*ret_ok) {
        g_test_message("%s: %s%s", command, output, errors);
    }
    return output;
}

char *qemu_img(bool *ret_ok, const char *format, ...)
{
    g_autofree char *arguments = NULL;
    va_list args;

    va_start(args, format);
    arguments = g_strdup_vprintf(format, args);
    va_end(args);
    return run(ret_ok, arguments);
}

void qemu_img_do(const char *format, ...)
{
    g_autofree char *arguments = NULL;
    g_autofree char *output = NULL;
    va_list args;
    bool ok;

    va_start(args, format);
    arguments = g_strdup_vprintf(format, args);
    va_end(args);
    output = run(&ok, arguments);
    g_assert_true(ok);
}

/* --- disks --- */

void qcow2_disk_create(Qcow2Disk *disk, const char *name, int64_t size, const char *create_options,
                       const char *node_options)
{
    g_autofree char *file = g_strconcat(name, ".qcow2", NULL);
    bool some = create_options && *create_options;

    *disk = (Qcow2Disk){ .name = name,
                         .create_options = create_options,
                         .node_options = node_options ? node_options : "",
                         .size = size,
                         .twin = g_malloc0(size),
                         .path = temp_path(file) };
    qemu_img_do("create -q -f qcow2 %s %s %s %" G_GINT64_FORMAT, some ? "-o" : "",
                some ? create_options : "", disk->path, size);
    qcow2_disk_open(disk);
}

void qcow2_disk_open(Qcow2Disk *disk)
{
    disk->node = add_node("{'driver':'qcow2','node-name':'%s','discard':'unmap',"
                          "'file':{'driver':'file','filename':'%s'}%s}",
                          disk->name, disk->path, disk->node_options);
    disk->user = open_user(disk->node, PERM_CONSISTENT_READ | PERM_WRITE);
}

void qcow2_disk_close(Qcow2Disk *disk)
{
    if (disk->user) {
        backend_free(g_steal_pointer(&disk->user));
        delete_node(disk->name);
        disk->node = NULL;
    }
}

void qcow2_disk_done(Qcow2Disk *disk)
{
    qcow2_disk_close(disk);
    g_free(disk->twin);
    g_free(disk->path);
}

/* --- requests --- */

void disk_fill(Qcow2Disk *disk, int64_t offset, int64_t bytes, int byte)
{
    g_assert_cmpint(do_fill(disk->user, offset, bytes, byte), ==, 0);
    memset(disk->twin + offset, byte, bytes);
}

/* Half of it shrinks well. */
static void make_noise(GRand *random, uint8_t *buf, int64_t bytes)
{
    uint32_t mask = g_rand_boolean(random) ? 0x03030303 : 0xffffffff;

    for (int64_t i = 0; i < bytes; i += 4) {
        uint32_t word = g_rand_int(random) & mask;

        memcpy(buf + i, &word, MIN(bytes - i, 4));
    }
}

void disk_noise(Qcow2Disk *disk, GRand *random, int64_t offset, int64_t bytes, unsigned flags)
{
    make_noise(random, disk->twin + offset, bytes);
    g_assert_cmpint(do_write(disk->user, offset, bytes, disk->twin + offset, flags), ==, 0);
}

void disk_zero(Qcow2Disk *disk, int64_t offset, int64_t bytes, unsigned flags)
{
    g_assert_cmpint(do_zero(disk->user, offset, bytes, flags), ==, 0);
    memset(disk->twin + offset, 0, bytes);
}

void disk_flush(Qcow2Disk *disk)
{
    g_assert_cmpint(do_flush(disk->user), ==, 0);
}

void disk_assert_range(Qcow2Disk *disk, int64_t offset, int64_t bytes)
{
    g_autofree uint8_t *buf = g_malloc(bytes);

    g_assert_cmpint(do_read(disk->user, offset, bytes, buf), ==, 0);
    for (int64_t i = 0; i < bytes; i++) {
        if (buf[i] != disk->twin[offset + i]) {
            g_error("at %" G_GINT64_FORMAT " there is %#x, not %#x", offset + i, buf[i],
                    disk->twin[offset + i]);
        }
    }
}

void disk_assert(Qcow2Disk *disk)
{
    disk_assert_range(disk, 0, disk->size);
}

/* --- the judge --- */

static int64_t report_number(const char *report, const char *name)
{
    json_t *json = json_loads(report, 0, NULL);
    int64_t value;

    g_assert_nonnull(json);
    value = json_integer_value(json_object_get(json, name));
    json_decref(json);
    return value;
}

void disk_judge(Qcow2Disk *disk, int max_leaks)
{
    g_autofree char *raw = g_strconcat(disk->path, ".raw", NULL);
    g_autofree char *report = NULL;
    bool ok;

    report = qemu_img(&ok, "check --output=json -f qcow2 %s", disk->path);
    if (report_number(report, "corruptions") || report_number(report, "check-errors") ||
        report_number(report, "leaks") > max_leaks) {
        run_shell("qemu-img check %s >&2 || true", disk->path);
        g_error("%s", report);
    }
    g_assert_true(g_file_set_contents(raw, (char *)disk->twin, disk->size, NULL));
    qemu_img_do("compare -f qcow2 -F raw %s %s", disk->path, raw);
    unlink(raw);
}

char *disk_map(Qcow2Disk *disk)
{
    bool ok;
    char *map = qemu_img(&ok, "map --output=json %s", disk->path);

    g_assert_true(ok);
    return map;
}

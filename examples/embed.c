/* SPDX-License-Identifier: MIT */
/*
 * A program with a disk of its own: opens it with a dirty bitmap, writes through it, and lists
 * what became dirty.
 *
 *     cc embed.c $(pkg-config --cflags --libs merino) -o embed
 *     truncate -s 64M disk.img && ./embed disk.img
 */
#include <merino/merino.h>

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void die(const char *what, char *error)
{
    fprintf(stderr, "embed: %s: %s\n", what, error ? error : "failed");
    merino_free(error);
    exit(1);
}

/* Run a QMP command and stop if it is refused. */
static void qmp(const char *format, ...)
{
    char request[4096];
    char *reply;
    int length;
    va_list args;

    va_start(args, format);
    length = vsnprintf(request, sizeof(request), format, args);
    va_end(args);
    if (length < 0 || (size_t)length >= sizeof(request)) {
        die("command", NULL);
    }

    reply = merino_qmp(request);
    if (!strncmp(reply, "{\"error\"", 8)) {
        die(request, reply);
    }
    merino_free(reply);
}

/* The functions that do I/O return 0 or a negative errno. */
static void check(const char *what, int rc)
{
    if (rc < 0) {
        die(what, strdup(strerror(-rc)));
    }
}

static void write_pattern(MerinoDisk *disk, int64_t offset, size_t bytes)
{
    char *buffer = malloc(bytes);

    if (!buffer) {
        die("write", NULL);
    }
    memset(buffer, 0xa5, bytes);
    check("write", merino_disk_write(disk, offset, buffer, bytes));
    free(buffer);
}

static void list_dirty(MerinoDisk *disk, const char *bitmap)
{
    int64_t offset = 0, bytes;
    char *error = NULL;

    while (merino_disk_next_dirty(disk, bitmap, offset, &offset, &bytes, &error)) {
        printf("dirty: %" PRId64 " bytes at %" PRId64 "\n", bytes, offset);
        offset += bytes;
    }
    if (error) {
        die("list", error);
    }
}

int main(int argc, char **argv)
{
    char *error = NULL;
    MerinoDisk *disk;

    if (argc != 2) {
        fprintf(stderr, "usage: embed IMAGE\n");
        return 2;
    }
    if (!merino_init(&error)) {
        die("start", error);
    }

    qmp("{\"execute\": \"blockdev-add\", \"arguments\": {\"driver\": \"file\","
        " \"node-name\": \"disk0\", \"filename\": \"%s\"}}",
        argv[1]);
    qmp("{\"execute\": \"block-dirty-bitmap-add\", \"arguments\": {\"node\": \"disk0\","
        " \"name\": \"changes\", \"granularity\": 4096}}");

    disk = merino_disk_open("disk0", true, &error);
    if (!disk) {
        die("open", error);
    }
    write_pattern(disk, 0, 512);
    write_pattern(disk, 1 << 20, 10000);
    check("write zeroes", merino_disk_write_zeroes(disk, 2 << 20, 65536));
    check("flush", merino_disk_flush(disk));
    list_dirty(disk, "changes");

    merino_disk_close(disk);
    merino_done();
    return 0;
}

/* SPDX-License-Identifier: MIT */
#include "cow-driver.h"
#include "block/backing.h"
#include "util/coroutine.h"
#include "util/error.h"
#include "util/size.h"

#include <errno.h>
#include <string.h>

typedef struct CowState {
    CoMutex lock; /* held by each write, so that blocks are made one after the other */
} CowState;

/* --- opening --- */

typedef struct ReadHeader {
    BlockChild *file;
    char text[COW_MAP + 1];
    int ret;
} ReadHeader;

static void coroutine_fn read_header(void *opaque)
{
    ReadHeader *header = opaque;

    header->ret = child_co_pread(header->file, 0, COW_MAP, header->text);
}

static bool open_header(BlockNode *node, const BlockdevRefOrNull *backing, GError **error)
{
    g_autofree ReadHeader *header = g_new0(ReadHeader, 1);
    g_auto(GStrv) lines = NULL;

    header->file = node->file;
    coroutine_run(read_header, header);
    if (header->ret < 0) {
        merino_error_errno(error, -header->ret, "Could not read qcow2 header");
        return false;
    }
    lines = g_strsplit(header->text, "\n", 5);
    if (g_strv_length(lines) < 5 || strcmp(lines[0], "COW") != 0) {
        merino_error(error, "Image is not in qcow2 format");
        return false;
    }
    node_set_size(node, g_ascii_strtoll(lines[1], NULL, 10));
    return node_open_backing(node, backing, *lines[2] ? lines[2] : NULL,
                             *lines[3] ? lines[3] : NULL, error);
}

static bool cow_open(BlockNode *node, const BlockdevOptions *options, GError **error)
{
    CowState *cow = node->state;

    co_mutex_init(&cow->lock);
    if (!node_open_child(node, options->u.qcow2.file, "file", CHILD_METADATA, error) ||
        !open_header(node, options->u.qcow2.backing, error)) {
        co_mutex_done(&cow->lock);
        return false;
    }
    return true;
}

static void cow_close(BlockNode *node)
{
    CowState *cow = node->state;

    co_mutex_done(&cow->lock);
}

static bool cow_probe(const uint8_t *head, size_t bytes)
{
    return bytes >= 4 && memcmp(head, "COW\n", 4) == 0;
}

static bool cow_reopen_prepare(ReopenState *state, UndoStack *undo, GError **error)
{
    return true;
}

/* --- requests --- */

static int coroutine_fn has_block(BlockNode *node, int64_t offset)
{
    uint8_t mark;
    int ret = child_co_pread(node->file, COW_MAP + offset / COW_BLOCK, 1, &mark);

    return ret < 0 ? ret : mark != 0;
}

static int64_t in_block(int64_t offset, int64_t bytes)
{
    return MIN(bytes, COW_BLOCK - offset % COW_BLOCK);
}

static int coroutine_fn read_piece(BlockNode *node, int64_t offset, int64_t bytes, void *buf)
{
    int ret = has_block(node, offset);

    if (ret > 0) {
        return child_co_pread(node->file, COW_DATA + offset, bytes, buf);
    }
    memset(buf, 0, bytes);
    return ret < 0 || !node->backing ? ret : child_co_pread(node->backing, offset, bytes, buf);
}

static int coroutine_fn cow_preadv(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                   unsigned flags)
{
    uint8_t block[COW_BLOCK];
    int64_t piece;
    int ret = 0;

    for (int64_t done = 0; done < bytes && ret == 0; done += piece) {
        piece = in_block(offset + done, bytes - done);
        ret = read_piece(node, offset + done, piece, block);
        iov_from_buf(vec, done, block, piece);
    }
    return ret;
}

static int coroutine_fn write_piece(BlockNode *node, int64_t offset, int64_t bytes,
                                    const IoVector *vec, int64_t done)
{
    int64_t start = align_down(offset, COW_BLOCK);
    uint8_t block[COW_BLOCK];
    uint8_t mark = 1;
    int ret = read_piece(node, start, COW_BLOCK, block);

    iov_to_buf(vec, done, block + (offset - start), bytes);
    if (ret == 0) {
        ret = child_co_pwrite(node->file, COW_DATA + start, COW_BLOCK, block, 0);
    }
    return ret < 0 ? ret : child_co_pwrite(node->file, COW_MAP + start / COW_BLOCK, 1, &mark, 0);
}

static int coroutine_fn cow_pwritev(BlockNode *node, int64_t offset, int64_t bytes, IoVector *vec,
                                    unsigned flags)
{
    CowState *cow = node->state;
    int64_t piece;
    int ret = 0;

    co_mutex_lock(&cow->lock);
    for (int64_t done = 0; done < bytes && ret == 0; done += piece) {
        piece = in_block(offset + done, bytes - done);
        ret = write_piece(node, offset + done, piece, vec, done);
    }
    co_mutex_unlock(&cow->lock);
    return ret;
}

static int coroutine_fn cow_block_status(BlockNode *node, int64_t offset, int64_t bytes,
                                         BlockStatus *ret_status)
{
    int ret = has_block(node, offset);

    *ret_status = (BlockStatus){
        .flags = ret > 0 ? BLOCK_STATUS_DATA | BLOCK_STATUS_OFFSET_VALID : 0,
        .bytes = in_block(offset, bytes),
        .map = COW_DATA + offset,
        .file = node->file->node,
    };
    return MIN(ret, 0);
}

static void cow_refresh_limits(BlockNode *node)
{
    node->limits = (BlockLimits){ .request_alignment = 1, .memory_alignment = 1 };
}

static const BlockDriver cow_driver = {
    .name = "qcow2",
    .has_layers = true,
    .state_size = sizeof(CowState),
    .probe = cow_probe,
    .open = cow_open,
    .close = cow_close,
    .reopen_prepare = cow_reopen_prepare,
    .co_preadv = cow_preadv,
    .co_pwritev = cow_pwritev,
    .co_block_status = cow_block_status,
    .refresh_limits = cow_refresh_limits,
};

void cow_driver_register(void)
{
    driver_register(&cow_driver);
}

void cow_make(const char *path, int64_t size, const char *backing, const char *format)
{
    g_autofree char *text = g_strdup_printf("COW\n%" G_GINT64_FORMAT "\n%s\n%s\n", size,
                                            backing ? backing : "", format ? format : "");
    GError *error = NULL;

    g_file_set_contents(path, text, -1, &error);
    g_assert_no_error(error);
}

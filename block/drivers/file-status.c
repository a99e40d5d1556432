/* SPDX-License-Identifier: MIT */
/*
 * Which parts of a file are holes, as the file system tells with SEEK_DATA and SEEK_HOLE.
 *
 * The last extent of data that was seen is remembered, because walks ask for it piece by piece.
 * Data stays data when it is written to, so a write cannot make it wrong; whatever may make a hole
 * forgets it. An answer that is late says "data" where there is a hole now, which costs time
 * but no bytes. A hole is never remembered.
 *
 * Where direct I/O wants whole blocks, answers are in whole blocks as well: one that has any data
 * is data, as the last one of a file that ends within it.
 */
#include "file.h"
#include "util/size.h"

#include <errno.h>
#include <unistd.h>

void file_forget_data(FileState *file)
{
    g_mutex_lock(&file->data.lock);
    file->data.begin = file->data.end = 0;
    g_mutex_unlock(&file->data.lock);
}

/* The end of the known data extent around `offset`, or 0. */
static int64_t known_data_end(FileState *file, int64_t offset)
{
    int64_t end = 0;

    g_mutex_lock(&file->data.lock);
    if (offset >= file->data.begin && offset < file->data.end) {
        end = file->data.end;
    }
    g_mutex_unlock(&file->data.lock);
    return end;
}

static void remember_data(FileState *file, int64_t begin, int64_t end)
{
    g_mutex_lock(&file->data.lock);
    file->data.begin = begin;
    file->data.end = end;
    g_mutex_unlock(&file->data.lock);
}

/* Whether there is a hole at `offset`, and where that ends; INT64_MAX: beyond everything. */
static bool find_extent(FileState *file, int64_t offset, int64_t *ret_end)
{
    int64_t data = lseek(file->fd, offset, SEEK_DATA);
    int64_t hole;

    if (data < 0 && errno == ENXIO) {
        *ret_end = INT64_MAX;
        return true;
    }
    if (data > offset) {
        *ret_end = data;
        return true;
    }
    hole = data < 0 ? -1 : lseek(file->fd, offset, SEEK_HOLE);
    if (hole <= offset) {
        *ret_end = INT64_MAX; /* it cannot tell, or the file changed in between */
        return false;
    }
    remember_data(file, offset, hole);
    *ret_end = hole;
    return false;
}

int coroutine_fn file_co_block_status(BlockNode *node, int64_t offset, int64_t bytes,
                                      BlockStatus *ret_status)
{
    FileState *file = node->state;
    int64_t end = file->no_holes ? INT64_MAX : known_data_end(file, offset);
    bool hole = end == 0 && find_extent(file, offset, &end);
    int64_t alignment = node->limits.request_alignment;
    int64_t alike = MIN(end - offset, bytes);

    hole = hole && alike >= alignment;
    *ret_status = (BlockStatus){
        .flags = (hole ? BLOCK_STATUS_ZERO : BLOCK_STATUS_DATA) | BLOCK_STATUS_OFFSET_VALID,
        .bytes = hole ? align_down(alike, alignment) : align_up(alike, alignment),
        .map = offset,
        .file = node,
    };
    return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * Requests: what each command may ask for, and how it is carried out.
 */
#include "transmission.h"

#include "util/size.h"

#include <errno.h>
#include <inttypes.h>

/* Reads shorter than this are looked at after reading for whether they are all zero; for longer
 * ones it is cheaper to ask for block status first. */
#define SPARSE_READ_MIN (32 * KiB)

/* Pieces of a read's reply; what comes after as many is sent as data. */
#define MAX_READ_PIECES 64

/* Commands without data have no limit of length. They are done in steps of this size, between which
 * a drain and other requests may come, and which end early when nobody waits for them any more. */
#define MAX_STEP (256 * MiB)

/* What a command's function returns when it has replied by itself. */
#define REPLIED 1

/* --- the commands: 0, -errno or REPLIED --- */

/* Find out which parts of the request read as zeroes. Inside the backend. */
static unsigned coroutine_fn find_pieces(NbdRequest *request, BlockNode *node, NbdReadPiece *pieces)
{
    uint64_t offset = request->header.offset;
    uint64_t end = offset + request->header.length;
    unsigned n = 0;

    while (offset < end) {
        BlockStatus status;
        bool hole = false;
        uint64_t bytes = end - offset;

        if (n < MAX_READ_PIECES - 1 &&
            node_co_block_status_above(node, NULL, (int64_t)offset, (int64_t)bytes, &status) == 0) {
            hole = status.flags & BLOCK_STATUS_ZERO;
            bytes = MIN(bytes, (uint64_t)status.bytes);
        }
        if (n && pieces[n - 1].hole == hole) {
            pieces[n - 1].length += bytes;
        } else {
            pieces[n++] = (NbdReadPiece){ .offset = offset, .length = bytes, .hole = hole };
        }
        offset += bytes;
    }
    return n;
}

/* Status and data are read behind one door, so that they belong together. */
static int coroutine_fn read_sparse(NbdRequest *request)
{
    BlockChild *root = backend_root(request->tx->backend);
    NbdReadPiece pieces[MAX_READ_PIECES];
    unsigned n = find_pieces(request, root->node, pieces);

    for (unsigned i = 0; i < n; i++) {
        uint64_t skip = pieces[i].offset - request->header.offset;
        int ret = pieces[i].hole
                      ? 0
                      : child_co_pread(root, (int64_t)pieces[i].offset, (int64_t)pieces[i].length,
                                       (char *)request->buffer + skip);

        if (ret < 0) {
            nbd_reply_error_at(request, nbd_error_from_errno(-ret), pieces[i].offset,
                               "reading from file failed");
            return REPLIED;
        }
    }
    nbd_reply_read(request, pieces, n);
    return REPLIED;
}

static int coroutine_fn read_plain(NbdRequest *request, bool may_be_hole)
{
    NbdReadPiece piece = { .offset = request->header.offset, .length = request->header.length };
    IoVector vec;
    int ret;

    iov_init_buf(&vec, request->buffer, piece.length);
    ret = backend_co_preadv(request->tx->backend, (int64_t)piece.offset, (int64_t)piece.length,
                            &vec, 0);
    if (ret < 0) {
        return ret;
    }
    piece.hole = may_be_hole && buffer_is_zero(request->buffer, piece.length);
    nbd_reply_read(request, &piece, 1);
    return REPLIED;
}

static int coroutine_fn run_read(NbdRequest *request)
{
    const NbdRequestHeader *header = &request->header;
    BlockBackend *backend = request->tx->backend;
    bool may_have_holes = request->tx->conn->structured && !(header->flags & NBD_CMD_FLAG_DF);
    int ret;

    if (header->length == 0) {
        return 0;
    }
    if (!nbd_request_buffer(request, header->length)) {
        return -ENOMEM;
    }
    if (!may_have_holes || header->length < SPARSE_READ_MIN) {
        return read_plain(request, may_have_holes);
    }
    backend_co_enter(backend);
    ret = read_sparse(request);
    backend_leave(backend);
    return ret;
}

static unsigned write_flags(const NbdRequest *request)
{
    bool fua = (request->header.flags & NBD_CMD_FLAG_FUA) || request->tx->exp->base->writethrough;

    return fua ? REQ_FUA : 0;
}

static int coroutine_fn run_write(NbdRequest *request)
{
    const NbdRequestHeader *header = &request->header;
    IoVector vec;

    if (header->length == 0) {
        return 0;
    }
    iov_init_buf(&vec, request->buffer, header->length);
    return backend_co_pwritev(request->tx->backend, (int64_t)header->offset,
                              (int64_t)header->length, &vec, write_flags(request));
}

typedef int coroutine_fn StepFn(NbdRequest *request, int64_t offset, int64_t bytes);

static bool client_is_gone(const NbdTransmission *tx)
{
    return tx->gone || atomic_load(&tx->conn->channel.is_shut);
}

static int coroutine_fn run_in_steps(NbdRequest *request, StepFn *step)
{
    const NbdRequestHeader *header = &request->header;
    uint64_t done = 0;
    int ret = 0;

    while (ret == 0 && done < header->length) {
        uint64_t bytes = MIN(header->length - done, MAX_STEP);

        if (done) {
            coroutine_pause();
            if (client_is_gone(request->tx)) {
                return -ESHUTDOWN;
            }
        }
        ret = step(request, (int64_t)(header->offset + done), (int64_t)bytes);
        done += bytes;
    }
    return ret;
}

static int coroutine_fn write_zeroes_step(NbdRequest *request, int64_t offset, int64_t bytes)
{
    const NbdRequestHeader *header = &request->header;
    unsigned flags = write_flags(request);

    if (!(header->flags & NBD_CMD_FLAG_NO_HOLE)) {
        flags |= REQ_MAY_UNMAP;
    }
    if (header->flags & NBD_CMD_FLAG_FAST_ZERO) {
        flags |= REQ_NO_FALLBACK;
    }
    return backend_co_pwrite_zeroes(request->tx->backend, offset, bytes, flags);
}

static int coroutine_fn run_write_zeroes(NbdRequest *request)
{
    return run_in_steps(request, write_zeroes_step);
}

static int coroutine_fn discard_step(NbdRequest *request, int64_t offset, int64_t bytes)
{
    return backend_co_pdiscard(request->tx->backend, offset, bytes);
}

static int coroutine_fn run_trim(NbdRequest *request)
{
    int ret = run_in_steps(request, discard_step);

    if (ret == 0 && request->header.length && write_flags(request)) {
        ret = backend_co_flush(request->tx->backend);
    }
    return ret;
}

static int coroutine_fn run_flush(NbdRequest *request)
{
    return backend_co_flush(request->tx->backend);
}

static int coroutine_fn run_cache(NbdRequest *request)
{
    const NbdRequestHeader *header = &request->header;

    return header->length ? backend_co_preadv(request->tx->backend, (int64_t)header->offset,
                                              (int64_t)header->length, NULL, REQ_PREFETCH)
                          : 0;
}

static int coroutine_fn run_block_status(NbdRequest *request)
{
    BlockBackend *backend = request->tx->backend;
    int ret;

    backend_co_enter(backend);
    ret = nbd_block_status(request);
    backend_leave(backend);
    return ret < 0 ? ret : REPLIED;
}

static const struct {
    uint16_t flags;  /* those allowed */
    bool moves_data; /* its length is of data: NBD_MAX_PAYLOAD holds */
    bool has_range;  /* offset and length lie in the export */
    bool writes;
    int coroutine_fn (*run)(NbdRequest *request);
    const char *failure;
} commands[NBD_CMD__MAX] = {
    [NBD_CMD_READ] = { .flags = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF,
                       .moves_data = true,
                       .has_range = true,
                       .run = run_read,
                       .failure = "reading from file failed" },
    [NBD_CMD_WRITE] = { .flags = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_PAYLOAD_LEN,
                        .moves_data = true,
                        .has_range = true,
                        .writes = true,
                        .run = run_write,
                        .failure = "writing to file failed" },
    [NBD_CMD_FLUSH] = { .flags = NBD_CMD_FLAG_FUA, .run = run_flush, .failure = "flush failed" },
    [NBD_CMD_TRIM] = { .flags = NBD_CMD_FLAG_FUA,
                       .has_range = true,
                       .writes = true,
                       .run = run_trim,
                       .failure = "discard failed" },
    [NBD_CMD_CACHE] = { .flags = NBD_CMD_FLAG_FUA,
                        .moves_data = true,
                        .has_range = true,
                        .run = run_cache,
                        .failure = "caching data failed" },
    [NBD_CMD_WRITE_ZEROES] = { .flags =
                                   NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
                               .has_range = true,
                               .writes = true,
                               .run = run_write_zeroes,
                               .failure = "writing to file failed" },
    [NBD_CMD_BLOCK_STATUS] = { .flags = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE |
                                        NBD_CMD_FLAG_PAYLOAD_LEN,
                               .has_range = true,
                               .run = run_block_status,
                               .failure = "block status failed" },
};

/* --- checking --- */

static bool has_payload_flag(const NbdTransmission *tx, const NbdRequestHeader *header)
{
    return tx->conn->extended && (header->flags & NBD_CMD_FLAG_PAYLOAD_LEN);
}

uint64_t nbd_request_payload(const NbdTransmission *tx, const NbdRequestHeader *header)
{
    return header->command == NBD_CMD_WRITE || has_payload_flag(tx, header) ? header->length : 0;
}

static uint16_t allowed_flags(const NbdTransmission *tx, uint16_t command)
{
    uint16_t flags = commands[command].flags;

    if (!tx->conn->structured) {
        flags &= (uint16_t)~NBD_CMD_FLAG_DF;
    }
    if (!tx->conn->extended) {
        flags &= (uint16_t)~NBD_CMD_FLAG_PAYLOAD_LEN;
    }
    return flags;
}

uint32_t nbd_range_check(const NbdTransmission *tx, uint16_t command, uint64_t offset,
                         uint64_t length, char **ret_message)
{
    uint64_t size = (uint64_t)tx->exp->size;

    if (G_LIKELY(offset <= size && length <= size - offset)) {
        return 0;
    }
    *ret_message =
        g_strdup_printf("operation past EOF; From: %" PRIu64 ", Len: %" PRIu64 ", Size: %" PRIu64,
                        offset, length, size);
    return command == NBD_CMD_WRITE || command == NBD_CMD_WRITE_ZEROES ? NBD_ENOSPC : NBD_EINVAL;
}

static uint32_t check_command(const NbdTransmission *tx, const NbdRequestHeader *header,
                              char **ret_message)
{
    if (header->command >= NBD_CMD__MAX || !commands[header->command].run) {
        *ret_message = g_strdup_printf("invalid request type (%u) received", header->command);
        return NBD_EINVAL;
    }
    if (header->length > NBD_MAX_PAYLOAD &&
        (commands[header->command].moves_data || has_payload_flag(tx, header))) {
        *ret_message = g_strdup_printf("len (%" PRIu64 " ) is larger than max len (%u)",
                                       header->length, NBD_MAX_PAYLOAD);
        return NBD_EINVAL;
    }
    if (commands[header->command].writes && !tx->exp->base->writable) {
        *ret_message = g_strdup("Export is read-only");
        return NBD_EPERM;
    }
    if (header->flags & ~allowed_flags(tx, header->command)) {
        *ret_message = g_strdup_printf("unsupported flags for command %s (got 0x%x)",
                                       nbd_command_name(header->command), header->flags);
        return NBD_EINVAL;
    }
    return 0;
}

uint32_t nbd_request_check(const NbdTransmission *tx, const NbdRequestHeader *header,
                           char **ret_message)
{
    uint32_t error = check_command(tx, header, ret_message);

    if (error) {
        return error;
    }
    if (header->command == NBD_CMD_BLOCK_STATUS) {
        return nbd_block_status_check(tx, header, ret_message);
    }
    return commands[header->command].has_range
               ? nbd_range_check(tx, header->command, header->offset, header->length, ret_message)
               : 0;
}

void coroutine_fn nbd_request_run(void *opaque)
{
    NbdRequest *request = opaque;
    uint16_t command = request->header.command;
    int ret = commands[command].run(request);

    if (ret == 0) {
        nbd_reply_success(request);
    } else if (ret < 0) {
        nbd_reply_error(request, nbd_error_from_errno(-ret), commands[command].failure);
    }
}

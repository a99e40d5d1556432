/* SPDX-License-Identifier: MIT */
#include "util/iov.h"

#include <stdint.h>
#include <string.h>

void iov_init(IoVector *vec)
{
    vec->iov = vec->inline_iov;
    vec->n = 0;
    vec->capacity = IOV_INLINE;
    vec->size = 0;
}

void iov_init_buf(IoVector *vec, void *buf, size_t size)
{
    iov_init(vec);
    iov_add(vec, buf, size);
}

void iov_done(IoVector *vec)
{
    if (vec->iov != vec->inline_iov) {
        g_free(vec->iov);
    }
    iov_init(vec);
}

static void grow(IoVector *vec)
{
    vec->capacity *= 2;
    if (vec->iov == vec->inline_iov) {
        vec->iov = g_new(struct iovec, vec->capacity);
        memcpy(vec->iov, vec->inline_iov, sizeof(vec->inline_iov));
    } else {
        vec->iov = g_renew(struct iovec, vec->iov, vec->capacity);
    }
}

void iov_add(IoVector *vec, void *buf, size_t size)
{
    if (size == 0) {
        return;
    }
    if (vec->n == vec->capacity) {
        grow(vec);
    }
    vec->iov[vec->n++] = (struct iovec){ .iov_base = buf, .iov_len = size };
    vec->size += size;
}

/*
 * A walk over the pieces of [offset, offset + size). `piece_next` gives one piece a call and
 * returns false at the end. The range must lie inside the vector.
 */
typedef struct PieceWalk {
    const struct iovec *iov;
    size_t skip;
    size_t left;
} PieceWalk;

static PieceWalk piece_walk(const IoVector *vec, size_t offset, size_t size)
{
    const struct iovec *iov = vec->iov;

    g_assert(offset <= vec->size && size <= vec->size - offset);
    while (size && offset >= iov->iov_len) {
        offset -= iov->iov_len;
        iov++;
    }
    return (PieceWalk){ .iov = iov, .skip = offset, .left = size };
}

static bool piece_next(PieceWalk *walk, struct iovec *ret_piece)
{
    if (walk->left == 0) {
        return false;
    }
    ret_piece->iov_base = (char *)walk->iov->iov_base + walk->skip;
    ret_piece->iov_len = MIN(walk->iov->iov_len - walk->skip, walk->left);
    walk->left -= ret_piece->iov_len;
    walk->skip = 0;
    walk->iov++;
    return true;
}

void iov_add_slice(IoVector *vec, const IoVector *src, size_t offset, size_t size)
{
    PieceWalk walk = piece_walk(src, offset, size);
    struct iovec piece;

    while (piece_next(&walk, &piece)) {
        iov_add(vec, piece.iov_base, piece.iov_len);
    }
}

void iov_to_buf(const IoVector *vec, size_t offset, void *buf, size_t size)
{
    PieceWalk walk = piece_walk(vec, offset, size);
    struct iovec piece;
    char *to = buf;

    while (piece_next(&walk, &piece)) {
        memcpy(to, piece.iov_base, piece.iov_len);
        to += piece.iov_len;
    }
}

void iov_from_buf(IoVector *vec, size_t offset, const void *buf, size_t size)
{
    PieceWalk walk = piece_walk(vec, offset, size);
    struct iovec piece;
    const char *from = buf;

    while (piece_next(&walk, &piece)) {
        memcpy(piece.iov_base, from, piece.iov_len);
        from += piece.iov_len;
    }
}

void iov_memset(IoVector *vec, size_t offset, int byte, size_t size)
{
    PieceWalk walk = piece_walk(vec, offset, size);
    struct iovec piece;

    while (piece_next(&walk, &piece)) {
        memset(piece.iov_base, byte, piece.iov_len);
    }
}

bool iov_is_zero(const IoVector *vec, size_t offset, size_t size)
{
    PieceWalk walk = piece_walk(vec, offset, size);
    struct iovec piece;

    while (piece_next(&walk, &piece)) {
        if (!buffer_is_zero(piece.iov_base, piece.iov_len)) {
            return false;
        }
    }
    return true;
}

/*
 * Data that is not zero usually shows it at once, so three bytes are looked at before the whole.
 * Then: a buffer is zero when its first bytes are zero and each byte equals the one 16 further on,
 * and for that comparison the C library has the widest instructions of the machine.
 */
bool buffer_is_zero(const void *buf, size_t size)
{
    static const char zeros[16];
    const char *bytes = buf;

    if (size == 0) {
        return true;
    }
    if (bytes[0] | bytes[size / 2] | bytes[size - 1]) {
        return false;
    }
    if (size <= sizeof(zeros)) {
        return memcmp(bytes, zeros, size) == 0;
    }
    return memcmp(bytes, zeros, sizeof(zeros)) == 0 &&
           memcmp(bytes, bytes + sizeof(zeros), size - sizeof(zeros)) == 0;
}

bool iov_is_aligned(const IoVector *vec, size_t alignment)
{
    for (int i = 0; i < vec->n; i++) {
        if (((uintptr_t)vec->iov[i].iov_base | vec->iov[i].iov_len) & (alignment - 1)) {
            return false;
        }
    }
    return true;
}

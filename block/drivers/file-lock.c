/* SPDX-License-Identifier: MIT */
/*
 * Image locks: how programs that use an image at the same time keep out of each other's way.
 *
 * The locks are open-file-description locks on single bytes of the image, and always shared ones:
 * a locked byte is a statement, not a barrier. For permission number i, a lock on byte 100 + i
 * says "I use it", one on byte 200 + i says "I do not bear others using it". Whoever makes such
 * a statement first makes it, then looks for statements of others that contradict: so of two
 * that come at the same time at least one sees the other. QEMU does the same with the same bytes.
 */
#include "file.h"
#include "util/error.h"

#include <errno.h>
#include <fcntl.h>

#define LOCK_USED     100
#define LOCK_UNSHARED 200

static const struct {
    unsigned perm;
    const char *name;
} perms[] = {
    { PERM_CONSISTENT_READ, "consistent read" },
    { PERM_WRITE, "write" },
    { PERM_WRITE_UNCHANGED, "write unchanged" },
    { PERM_RESIZE, "resize" },
};

/* Returns 0 or -errno. `type` is F_RDLCK or F_UNLCK. */
static int set_lock(int fd, short type, int64_t byte)
{
    struct flock lock = { .l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };

    return fcntl(fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

/* Whether others have the byte locked; or -errno. */
static int is_locked_by_others(int fd, int64_t byte)
{
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };

    if (fcntl(fd, F_OFD_GETLK, &lock) < 0) {
        return -errno;
    }
    return lock.l_type != F_UNLCK;
}

bool file_locks_supported(int fd)
{
    return is_locked_by_others(fd, LOCK_USED) >= 0;
}

/* Lock the bytes of the permissions in `bits`; unlocks them again on failure. */
static bool lock_bytes(int fd, int64_t base, unsigned bits, GError **error)
{
    for (size_t i = 0; i < G_N_ELEMENTS(perms); i++) {
        int ret = bits & perms[i].perm ? set_lock(fd, F_RDLCK, base + i) : 0;

        if (ret < 0) {
            merino_error_errno(error, -ret, "Failed to lock byte %d", (int)(base + i));
            while (i-- > 0) {
                if (bits & perms[i].perm) {
                    set_lock(fd, F_UNLCK, base + i);
                }
            }
            return false;
        }
    }
    return true;
}

static void unlock_bytes(int fd, int64_t base, unsigned bits)
{
    for (size_t i = 0; i < G_N_ELEMENTS(perms); i++) {
        if (bits & perms[i].perm) {
            set_lock(fd, F_UNLCK, base + i);
        }
    }
}

static bool lock_both(int fd, unsigned perm, unsigned unshared, GError **error)
{
    if (!lock_bytes(fd, LOCK_USED, perm, error)) {
        return false;
    }
    if (!lock_bytes(fd, LOCK_UNSHARED, unshared, error)) {
        unlock_bytes(fd, LOCK_USED, perm);
        return false;
    }
    return true;
}

/* Whether others contradict: hold a lock on one of the bytes. */
static bool check_bytes(const FileState *file, int64_t base, unsigned bits, const char *what,
                        GError **error)
{
    for (size_t i = 0; i < G_N_ELEMENTS(perms); i++) {
        int ret = bits & perms[i].perm ? is_locked_by_others(file->fd, base + i) : 0;

        if (ret < 0) {
            merino_error_errno(error, -ret, "Failed to check byte %d", (int)(base + i));
        } else if (ret > 0) {
            merino_error(error, "Failed to get %s\"%s\" lock", what, perms[i].name);
            merino_error_hint(error, "Is another process using the image [%s]?", file->path);
        }
        if (ret != 0) {
            return false;
        }
    }
    return true;
}

bool file_lock_same(const FileState *file, int fd, GError **error)
{
    return !file->use_locks || lock_both(fd, file->locked_perm, file->locked_unshared, error);
}

void file_lock_none(const FileState *file, int fd)
{
    if (file->use_locks) {
        unlock_bytes(fd, LOCK_USED, file->locked_perm);
        unlock_bytes(fd, LOCK_UNSHARED, file->locked_unshared);
    }
}

bool file_lock_prepare(FileState *file, unsigned perm, unsigned unshared, GError **error)
{
    unsigned old_perm = file->locked_perm;
    unsigned old_unshared = file->locked_unshared;

    if (!file->use_locks) {
        return true;
    }
    if (!lock_both(file->fd, perm & ~old_perm, unshared & ~old_unshared, error)) {
        return false;
    }
    file->locked_perm |= perm;
    file->locked_unshared |= unshared;
    if (!check_bytes(file, LOCK_UNSHARED, perm, "", error) ||
        !check_bytes(file, LOCK_USED, unshared, "shared ", error)) {
        file_lock_keep(file, old_perm, old_unshared);
        return false;
    }
    return true;
}

void file_lock_keep(FileState *file, unsigned perm, unsigned unshared)
{
    unlock_bytes(file->fd, LOCK_USED, file->locked_perm & ~perm);
    unlock_bytes(file->fd, LOCK_UNSHARED, file->locked_unshared & ~unshared);
    file->locked_perm &= perm;
    file->locked_unshared &= unshared;
}

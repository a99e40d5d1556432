/* SPDX-License-Identifier: MIT */
#include "process.h"

#include "util/error.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The child's end of the pipe to the waiting parent; -1: not daemonized. */
static int parent_fd = -1;

static char *pidfile_path; /* absolute; NULL: none written */

/* --- the background --- */

/* One byte through the pipe means that the child serves; its end without a byte, that it died. */
static _Noreturn void wait_for_child(int fd)
{
    char byte;
    ssize_t got;

    do {
        got = read(fd, &byte, 1);
    } while (got < 0 && errno == EINTR);
    _exit(got == 1 ? EXIT_SUCCESS : EXIT_FAILURE);
}

bool process_daemonize(GError **error)
{
    int fds[2];
    pid_t pid;

    if (pipe2(fds, O_CLOEXEC) < 0) {
        merino_error_errno(error, errno, "cannot create a pipe");
        return false;
    }
    pid = fork();
    if (pid < 0) {
        merino_error_errno(error, errno, "cannot fork");
        close(fds[0]);
        close(fds[1]);
        return false;
    }
    if (pid > 0) {
        close(fds[1]);
        wait_for_child(fds[0]);
    }
    close(fds[0]);
    parent_fd = fds[1];
    setsid();
    umask(027);
    return true;
}

bool process_detach(GError **error)
{
    int null_fd;

    if (parent_fd < 0) {
        return true;
    }
    null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null_fd < 0 || chdir("/") < 0) {
        merino_error_errno(error, errno, "cannot detach");
        return false;
    }
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        dup2(null_fd, fd);
    }
    if (null_fd > STDERR_FILENO) {
        close(null_fd);
    }
    /* A parent that was killed meanwhile does not mind. */
    (void)!write(parent_fd, "", 1);
    close(parent_fd);
    parent_fd = -1;
    return true;
}

/* --- the pid file --- */

static bool lock_pidfile(int fd, GError **error)
{
    struct flock whole = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

    if (fcntl(fd, F_SETLK, &whole) < 0) {
        merino_error_errno(error, errno, "cannot create PID file: Cannot lock pid file");
        return false;
    }
    return true;
}

static bool fill_pidfile(int fd, GError **error)
{
    g_autofree char *text = g_strdup_printf("%d\n", (int)getpid());
    size_t len = strlen(text);

    if (ftruncate(fd, 0) < 0 || write(fd, text, len) != (ssize_t)len) {
        merino_error_errno(error, errno, "cannot create PID file: Failed to write pid file");
        return false;
    }
    return true;
}

/* Whether the locked file still goes by its name: a process that ends takes the name away before
 * its lock goes. */
static bool is_named(int fd, const char *path)
{
    struct stat locked, named;

    return fstat(fd, &locked) == 0 && stat(path, &named) == 0 && locked.st_dev == named.st_dev &&
           locked.st_ino == named.st_ino;
}

/* The file, locked; -1 with an error. */
static int open_pidfile(const char *path, GError **error)
{
    for (;;) {
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, S_IRUSR | S_IWUSR);

        if (fd < 0) {
            merino_error_errno(error, errno, "cannot create PID file: Could not create '%s'", path);
            return -1;
        }
        if (!lock_pidfile(fd, error)) {
            close(fd);
            return -1;
        }
        if (is_named(fd, path)) {
            return fd;
        }
        close(fd);
    }
}

bool process_write_pidfile(const char *path, GError **error)
{
    int fd = open_pidfile(path, error);

    if (fd < 0) {
        return false;
    }
    if (!fill_pidfile(fd, error)) {
        unlink(path);
        close(fd);
        return false;
    }
    /* Open, and so locked, to the end. */
    pidfile_path = g_canonicalize_filename(path, NULL);
    return true;
}

void process_remove_pidfile(void)
{
    if (pidfile_path) {
        unlink(pidfile_path);
        g_clear_pointer(&pidfile_path, g_free);
    }
}

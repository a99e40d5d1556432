/* SPDX-License-Identifier: MIT */
#include "qmp-output.h"

#include <errno.h>
#include <glib-unix.h>
#include <limits.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* A queue that grew beyond this gives its memory back once it is empty. */
#define QUEUE_KEPT (64 * 1024)

struct QmpOutput {
    int fd;
    bool is_socket;
    bool failed;
    GString *queue;
    size_t sent; /* bytes of `queue` that are already written */
    guint source;
    QmpOutputProgress *progress;
    void *opaque;
};

QmpOutput *qmp_output_new(int fd, QmpOutputProgress *progress, void *opaque)
{
    QmpOutput *output = g_new0(QmpOutput, 1);
    struct stat status;

    output->fd = fd;
    output->is_socket = fstat(fd, &status) == 0 && S_ISSOCK(status.st_mode);
    output->queue = g_string_new(NULL);
    output->progress = progress;
    output->opaque = opaque;
    return output;
}

static void stop_waiting(QmpOutput *output)
{
    if (output->source) {
        g_source_remove(output->source);
        output->source = 0;
    }
}

void qmp_output_free(QmpOutput *output)
{
    if (!output) {
        return;
    }
    stop_waiting(output);
    g_string_free(output->queue, true);
    g_free(output);
}

/* Write once without blocking: bytes written, or -errno. */
static ssize_t write_some(QmpOutput *output, const char *bytes, size_t len)
{
    struct pollfd ready = { .fd = output->fd, .events = POLLOUT };
    ssize_t written;

    do {
        if (output->is_socket) {
            written = send(output->fd, bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL);
        } else if (poll(&ready, 1, 0) == 0) {
            return -EAGAIN;
        } else {
            written = write(output->fd, bytes, MIN(len, PIPE_BUF));
        }
    } while (written < 0 && errno == EINTR);
    return written < 0 ? -errno : written;
}

/* Write until all is written or the descriptor takes no more: bytes written. */
static size_t write_most(QmpOutput *output, const char *bytes, size_t len)
{
    size_t done = 0;

    while (done < len) {
        ssize_t written = write_some(output, bytes + done, len - done);

        if (written < 0) {
            output->failed = output->failed || written != -EAGAIN;
            break;
        }
        done += written;
    }
    return done;
}

static void forget_queue(QmpOutput *output)
{
    if (output->queue->allocated_len > QUEUE_KEPT) {
        g_string_free(output->queue, true);
        output->queue = g_string_new(NULL);
    }
    g_string_truncate(output->queue, 0);
    output->sent = 0;
}

static void send_queue(QmpOutput *output)
{
    output->sent +=
        write_most(output, output->queue->str + output->sent, qmp_output_pending(output));
    if (output->failed || output->sent == output->queue->len) {
        forget_queue(output);
    } else if (output->sent > output->queue->len / 2) {
        g_string_erase(output->queue, 0, output->sent);
        output->sent = 0;
    }
}

static gboolean on_writable(gint fd, GIOCondition condition, gpointer opaque)
{
    QmpOutput *output = opaque;
    bool more;

    send_queue(output);
    more = qmp_output_pending(output) > 0;
    if (!more) {
        output->source = 0;
    }
    /* This may free the output. */
    output->progress(output->opaque);
    return more;
}

static gboolean on_failed(gpointer opaque)
{
    QmpOutput *output = opaque;

    output->source = 0;
    output->progress(output->opaque);
    return G_SOURCE_REMOVE;
}

static void wait_for_progress(QmpOutput *output)
{
    if (output->failed) {
        stop_waiting(output);
        output->source = g_idle_add_full(G_PRIORITY_DEFAULT, on_failed, output, NULL);
    } else if (!output->source && qmp_output_pending(output) > 0) {
        output->source =
            g_unix_fd_add(output->fd, G_IO_OUT | G_IO_ERR | G_IO_HUP, on_writable, output);
    }
}

void qmp_output_write(QmpOutput *output, const char *bytes, size_t len)
{
    size_t done = 0;

    if (output->failed) {
        return;
    }
    if (qmp_output_pending(output) == 0) {
        done = write_most(output, bytes, len);
    }
    if (!output->failed) {
        g_string_append_len(output->queue, bytes + done, len - done);
    }
    wait_for_progress(output);
}

size_t qmp_output_pending(const QmpOutput *output)
{
    return output->queue->len - output->sent;
}

bool qmp_output_failed(const QmpOutput *output)
{
    return output->failed;
}

void qmp_output_abandon(QmpOutput *output)
{
    output->failed = true;
    forget_queue(output);
    wait_for_progress(output);
}

void qmp_output_drain(QmpOutput *output, int64_t deadline_us)
{
    while (!output->failed && qmp_output_pending(output) > 0) {
        struct pollfd writable = { .fd = output->fd, .events = POLLOUT };
        int64_t left_us = deadline_us - g_get_monotonic_time();

        if (left_us <= 0 || poll(&writable, 1, (int)(left_us / 1000) + 1) == 0) {
            return;
        }
        send_queue(output);
    }
}

/* SPDX-License-Identifier: MIT */
#include "nbd-client.h"

#include "block/export.h"
#include "disks.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#define RECEIVE_PIECE (32 << 10)

/* A client hangs up when it got as many bytes, or waited as many turns of the loop for the next
 * ones: there are requests that take for ever on a disk of 2^63 bytes. */
#define MAX_RECEIVED (80 << 20)
#define MAX_WAIT     20

void nbd_make_exports(void)
{
    disks_init();
    disks_blockdev_add("{'driver': 'null-co', 'node-name': 'base', 'size': 1049088,"
                       " 'read-zeroes': true}");
    disks_bitmap_add("{'node': 'base', 'name': 'old', 'granularity': 512}");
    disks_mark("base", 0, 1);
    disks_mark("base", 131072, 200000);
    disks_blockdev_add("{'driver': 'copy-before-write', 'node-name': 'cbw', 'file': 'base',"
                       " 'target': {'driver': 'null-co', 'size': 1049088}}");
    disks_blockdev_add("{'driver': 'snapshot-access', 'node-name': 'view', 'file': 'cbw',"
                       " 'read-only': true}");
    disks_bitmap_add("{'node': 'cbw', 'name': 'new'}");
    disks_bitmap_add("{'node': 'cbw', 'name': 'coarse', 'granularity': 1048576}");
    disks_blockdev_add("{'driver': 'null-co', 'node-name': 'huge', 'size': 9223372035781033472}");
    disks_bitmap_add("{'node': 'huge', 'name': 'new', 'granularity': 2147483648}");
    disks_mark("huge", 0, 1);
    disks_mark("huge", INT64_C(1) << 62, 1);
    disks_blockdev_add("{'driver': 'null-co', 'node-name': 'empty', 'size': 0}");

    disks_export_add("{'type': 'nbd', 'id': 'disk', 'node-name': 'cbw', 'name': 'disk',"
                     " 'writable': true, 'allocation-depth': true,"
                     " 'bitmaps': ['new', 'coarse', {'node': 'base', 'name': 'old'}]}");
    disks_export_add("{'type': 'nbd', 'id': 'frozen', 'node-name': 'view', 'name': 'frozen',"
                     " 'description': 'a view'}");
    disks_export_add("{'type': 'nbd', 'id': 'huge', 'node-name': 'huge', 'name': 'huge',"
                     " 'writable': true, 'bitmaps': ['new']}");
    disks_export_add("{'type': 'nbd', 'id': 'empty', 'node-name': 'empty', 'name': ''}");
}

/* Send what is taken now; false when nothing is left. */
static bool send_some(int fd, const guint8 **bytes, gsize *size)
{
    ssize_t sent = send(fd, *bytes, *size, MSG_NOSIGNAL);

    if (sent > 0) {
        *bytes += sent;
        *size -= (gsize)sent;
    }
    return *size > 0;
}

/* Take what there is; false at the end of the stream. */
static bool receive_some(int fd, GByteArray *received)
{
    guint8 piece[RECEIVE_PIECE];
    ssize_t got;

    while ((got = recv(fd, piece, sizeof(piece), 0)) > 0) {
        g_byte_array_append(received, piece, (guint)got);
    }
    return got < 0 && errno == EAGAIN;
}

/* Whether the server has forgotten its clients. */
static bool is_idle(void)
{
    for (const BlockExport *exp = export_next(NULL); exp; exp = export_next((BlockExport *)exp)) {
        if (atomic_load(&exp->refs) > 1) {
            return false;
        }
    }
    return true;
}

/* The loop is not blocked on, because it knows nothing of the client's end. */
void nbd_exchange(const guint8 *bytes, gsize size, bool tls)
{
    g_autoptr(GByteArray) received = g_byte_array_new();
    const guint8 *left = bytes;
    gsize n_left = size;
    bool sending = true, open = true, cut = false;
    unsigned waited = 0;
    int fd = disks_connect();

    while (open || (!cut && !is_idle())) {
        guint had;

        if (sending && !send_some(fd, &left, &n_left)) {
            sending = false;
            shutdown(fd, SHUT_WR);
        }
        had = received->len;
        open = receive_some(fd, received);
        waited = received->len == had ? waited + 1 : 0;
        if (received->len > MAX_RECEIVED || waited == MAX_WAIT) {
            cut = true;
            shutdown(fd, SHUT_RDWR);
        }
        event_loop_poll(event_loop_main(), false);
    }
    close(fd);
    nbd_judge(bytes, size, received->data, received->len, cut, tls);
}

/* SPDX-License-Identifier: MIT */
/*
 * An NBD client that sends what it is given and keeps what it gets, and a judge of both.
 *
 * The judge reads the client's bytes as the protocol means them and the server's beside them. It
 * knows nothing of how the server works, but that its disks never wait, so that replies come in
 * the order of the requests; it goes no further than to a request so long that it is done in steps.
 * It holds that
 *  - each option and each request has exactly one answer, in the form that was negotiated, and
 *    nothing else is sent;
 *  - what the server cannot go on after (a wrong magic, a payload beyond the limit) ends the stream
 *    there, and nothing else ends it;
 *  - data covers the range asked for exactly; extents are not empty, lie in it, and come once for
 *    each context that was selected;
 *  - a request beyond the end of the disk fails, a plain one inside succeeds;
 *  - where TLS is asked for, nothing but STARTTLS and ABORT is granted before it. What follows a
 *    STARTTLS that is granted is not for this judge.
 */
#ifndef MERINO_FUZZ_NBD_CLIENT_H
#define MERINO_FUZZ_NBD_CLIENT_H

#include <glib.h>
#include <stdbool.h>

/* Make the exports that clients find:
 *   disk    a small disk under copy-before-write, with bitmaps and allocation depth, writable
 *   frozen  the view of it, read-only, with a description
 *   huge    close to 2^63 bytes, with a bitmap as coarse as can be, writable
 *   empty   of no bytes */
void nbd_make_exports(void);

/* Connect, send, receive until the server is done, and let the judge look at it. `tls`: the server
 * asks for it. */
void nbd_exchange(const guint8 *bytes, gsize size, bool tls);

/* `cut`: the client hung up before the server was done. */
void nbd_judge(const guint8 *sent, gsize n_sent, const guint8 *received, gsize n_received, bool cut,
               bool tls);

#endif

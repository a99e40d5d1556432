/* SPDX-License-Identifier: MIT */
/*
 * TLS credentials: the objects `tls-creds-x509` and `tls-creds-psk`, by id.
 *
 * Files of certificates are read and checked when the object is made; the file of pre-shared keys
 * is looked into by each handshake. Control plane, but for what sessions do with credentials, which
 * are not changed once they are made. Each user of an object holds it, and an object with users
 * is not deleted. Errors are in QEMU's words.
 */
#ifndef MERINO_NET_TLS_CREDS_H
#define MERINO_NET_TLS_CREDS_H

#include "qapi/qapi-types.h"

typedef struct TlsCreds TlsCreds;

/* Nobody else has the id. */
bool tls_creds_add_x509(const char *id, const TlsCredsX509Properties *properties, GError **error);
bool tls_creds_add_psk(const char *id, const TlsCredsPskProperties *properties, GError **error);
bool tls_creds_delete(const char *id, GError **error); /* refused while in use */
bool tls_creds_exists(const char *id);

/* Hold credentials that are for a server; NULL and an error when there are none of that id. */
TlsCreds *tls_creds_acquire_server(const char *id, GError **error);
void tls_creds_release(TlsCreds *creds); /* NULL is ignored */

#endif

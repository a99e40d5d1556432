/* SPDX-License-Identifier: MIT */
/*
 * What credentials are made of, for those who load them and for sessions.
 */
#ifndef MERINO_NET_TLS_CREDS_INTERNAL_H
#define MERINO_NET_TLS_CREDS_INTERNAL_H

#include "net/tls-creds.h"

#include <gnutls/gnutls.h>

typedef enum TlsCredsKind {
    TLS_CREDS_X509,
    TLS_CREDS_PSK,
} TlsCredsKind;

struct TlsCreds {
    char *id;
    TlsCredsKind kind;
    bool server;
    bool verify_peer;
    gnutls_priority_t priority;
    unsigned users;

    /* Those of the kind and of the side; others are NULL. */
    gnutls_certificate_credentials_t x509;
    gnutls_psk_server_credentials_t psk_server;
    gnutls_psk_client_credentials_t psk_client;
    gnutls_dh_params_t dh_params;
};

/* The path of a file of the credentials; the caller frees. NULL when there is none: an error
 * if it is `required`. */
bool tls_creds_path(const char *dir, const char *name, bool required, char **ret_path,
                    GError **error);

/* The files of x509 credentials. */
typedef struct TlsX509Files {
    char *ca_cert, *ca_crl, *cert, *key, *dh_params; /* NULL: there is none */
} TlsX509Files;

/* Look whether the certificates are of use for a server, or for a client. */
bool tls_creds_check_x509(const TlsX509Files *files, bool server, GError **error);

#endif

/* SPDX-License-Identifier: MIT */
/*
 * For tests of TLS: certificates and keys, made in the process, and folders of them with the names
 * that credentials have. Folders lie in the temporary folder of the I/O harness.
 */
#ifndef MERINO_TESTS_TLS_FILES_H
#define MERINO_TESTS_TLS_FILES_H

#include <glib.h>
#include <gnutls/x509.h>
#include <stdbool.h>

typedef struct TestCert {
    gnutls_x509_crt_t cert;
    gnutls_x509_privkey_t key;
} TestCert;

/* What a certificate says. Zeroes stand for a good one that is no authority's. */
typedef struct TestCertInfo {
    const char *name;
    bool is_ca;
    bool no_constraints;    /* it does not say whether it is a CA */
    int days;               /* when it begins, from now; 0: it is of today */
    unsigned usage;         /* GNUTLS_KEY_*; 0: it does not say */
    const char *purpose;    /* an OID; NULL: it does not say */
    bool critical;          /* the purpose is */
    const TestCert *signer; /* NULL: signed by itself */
} TestCertInfo;

/* It lives as long as the program. */
const TestCert *make_cert(const TestCertInfo *info);

/* A new folder; the caller frees its path. */
char *make_creds_folder(void);
/* Write `text` to a file of the folder. */
void write_file(const char *folder, const char *name, const char *text);
/* Write certificates, one behind the other up to NULL; and a key. */
void write_certs(const char *folder, const char *name, ...) G_GNUC_NULL_TERMINATED;
void write_key(const char *folder, const char *name, const TestCert *cert);
void write_key_with_password(const char *folder, const char *name, const TestCert *cert,
                             const char *password);
/* A list that revokes one certificate. */
void write_crl(const char *folder, const TestCert *signer, const TestCert *revoked);

#endif

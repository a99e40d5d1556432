/* SPDX-License-Identifier: MIT */
/*
 * Whether certificates are of use, seen before somebody connects.
 *
 * Each certificate authority in its file must be one, be of today and be allowed to sign. Our own
 * certificate must be of today, be none of an authority, be allowed what its side does, and
 * be vouched for by the authorities. What an extension forbids counts if it is marked critical.
 */
#include "tls-creds-internal.h"
#include "util/error.h"

#include <gnutls/x509.h>
#include <time.h>

/* What a certificate is to be good for. */
typedef enum Role {
    ROLE_CA,
    ROLE_SERVER,
    ROLE_CLIENT,
} Role;

static const char *role_name(Role role)
{
    static const char *const names[] = { "CA", "server", "client" };

    return names[role];
}

/* The certificates of a file. */
typedef struct CertList {
    gnutls_x509_crt_t *items;
    unsigned n;
} CertList;

static void cert_list_done(CertList *list)
{
    for (unsigned i = 0; i < list->n; i++) {
        gnutls_x509_crt_deinit(list->items[i]);
    }
    gnutls_free(list->items);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(CertList, cert_list_done)

/* 0 or a GnuTLS error. */
static int cert_list_import(CertList *list, const char *text, gsize size)
{
    gnutls_datum_t datum = { (unsigned char *)text, (unsigned)size };

    return gnutls_x509_crt_list_import2(&list->items, &list->n, &datum, GNUTLS_X509_FMT_PEM, 0);
}

/* Whether there is a certificate at the front; GnuTLS says more of one than of a list. */
static int import_one(const char *text, gsize size)
{
    gnutls_datum_t datum = { (unsigned char *)text, (unsigned)size };
    gnutls_x509_crt_t cert;
    int ret = gnutls_x509_crt_init(&cert);

    if (ret >= 0) {
        ret = gnutls_x509_crt_import(cert, &datum, GNUTLS_X509_FMT_PEM);
        gnutls_x509_crt_deinit(cert);
    }
    return ret;
}

static bool load_own(CertList *list, const char *path, Role role, GError **error)
{
    g_autofree char *text = NULL;
    gsize size;
    int ret;

    if (!g_file_get_contents(path, &text, &size, error)) {
        return false;
    }
    ret = import_one(text, size);
    if (ret >= 0) {
        ret = cert_list_import(list, text, size);
    }
    if (ret < 0) {
        merino_error(error, "Unable to import %s certificate %s: %s", role_name(role), path,
                     gnutls_strerror(ret));
        return false;
    }
    return true;
}

static bool load_authorities(CertList *list, const char *path, GError **error)
{
    g_autofree char *text = NULL;
    gsize size;

    if (!g_file_get_contents(path, &text, &size, error)) {
        return false;
    }
    if (cert_list_import(list, text, size) < 0) {
        merino_error(error, "Unable to import CA certificate list %s", path);
        return false;
    }
    return true;
}

static bool check_times(gnutls_x509_crt_t cert, const char *path, Role role, GError **error)
{
    time_t now = time(NULL);

    if (gnutls_x509_crt_get_expiration_time(cert) < now) {
        merino_error(error, "The %s certificate %s has expired", role_name(role), path);
        return false;
    }
    if (gnutls_x509_crt_get_activation_time(cert) > now) {
        merino_error(error, "The %s certificate %s is not yet active", role_name(role), path);
        return false;
    }
    return true;
}

static bool check_constraints(gnutls_x509_crt_t cert, const char *path, Role role, GError **error)
{
    int ret = gnutls_x509_crt_get_basic_constraints(cert, NULL, NULL, NULL);

    if (ret > 0 && role != ROLE_CA) {
        merino_error(error,
                     "The certificate %s basic constraints show a CA, but we need one for a %s",
                     path, role_name(role));
        return false;
    }
    if (ret == 0 && role == ROLE_CA) {
        merino_error(error, "The certificate %s basic constraints do not show a CA", path);
        return false;
    }
    if (ret == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE && role == ROLE_CA) {
        merino_error(error, "The certificate %s is missing basic constraints for a CA", path);
        return false;
    }
    if (ret < 0 && ret != GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE) {
        merino_error(error, "Unable to query certificate %s basic constraints: %s", path,
                     gnutls_strerror(ret));
        return false;
    }
    return true;
}

static bool check_usage(gnutls_x509_crt_t cert, const char *path, Role role, GError **error)
{
    unsigned wanted = role == ROLE_CA ? GNUTLS_KEY_KEY_CERT_SIGN : GNUTLS_KEY_DIGITAL_SIGNATURE;
    unsigned usage, critical = 0;
    int ret = gnutls_x509_crt_get_key_usage(cert, &usage, &critical);

    if (ret < 0 && ret != GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE) {
        merino_error(error, "Unable to query certificate %s key usage: %s", path,
                     gnutls_strerror(ret));
        return false;
    }
    if (ret >= 0 && critical && !(usage & wanted)) {
        merino_error(error, "Certificate %s usage does not permit %s", path,
                     role == ROLE_CA ? "certificate signing" : "digital signature");
        return false;
    }
    return true;
}

/* Of the extended key usage, one purpose. 1: it is allowed, 0: it forbids, unless another one
 * allows; -1: there are no more. */
static int look_at_purpose(gnutls_x509_crt_t cert, unsigned index, const char *wanted,
                           bool *ret_critical)
{
    char oid[128] = "";
    size_t size = sizeof(oid);
    unsigned critical = 0;
    int ret = gnutls_x509_crt_get_key_purpose_oid(cert, index, oid, &size, &critical);

    if (ret == GNUTLS_E_SHORT_MEMORY_BUFFER) {
        return 0;
    }
    if (ret < 0) {
        return -1;
    }
    *ret_critical |= critical;
    return g_str_equal(oid, wanted) || g_str_equal(oid, GNUTLS_KP_ANY);
}

static bool check_purpose(gnutls_x509_crt_t cert, const char *path, Role role, GError **error)
{
    const char *wanted = role == ROLE_SERVER ? GNUTLS_KP_TLS_WWW_SERVER : GNUTLS_KP_TLS_WWW_CLIENT;
    bool allowed = false, critical = false;
    int ret;

    for (unsigned i = 0; !allowed && (ret = look_at_purpose(cert, i, wanted, &critical)) >= 0;
         i++) {
        allowed = ret;
    }
    if (critical && !allowed) {
        merino_error(error, "Certificate %s purpose does not allow use with a TLS %s", path,
                     role_name(role));
        return false;
    }
    return true;
}

static bool check_cert(gnutls_x509_crt_t cert, const char *path, Role role, GError **error)
{
    return check_times(cert, path, role, error) && check_constraints(cert, path, role, error) &&
           check_usage(cert, path, role, error) &&
           (role == ROLE_CA || check_purpose(cert, path, role, error));
}

static bool check_trust(const CertList *own, const char *path, const CertList *authorities,
                        const char *ca_path, GError **error)
{
    const char *reason = "Invalid certificate";
    unsigned status = 0;
    int ret = gnutls_x509_crt_list_verify(own->items, (int)own->n, authorities->items,
                                          (int)authorities->n, NULL, 0, 0, &status);

    if (ret < 0) {
        merino_error(error, "Unable to verify certificate %s against CA certificate %s: %s", path,
                     ca_path, gnutls_strerror(ret));
        return false;
    }
    if (!status) {
        return true;
    }
    if (status & GNUTLS_CERT_INSECURE_ALGORITHM) {
        reason = "The certificate uses an insecure algorithm";
    } else if (status & GNUTLS_CERT_REVOKED) {
        reason = "The certificate has been revoked";
    } else if (status & GNUTLS_CERT_SIGNER_NOT_FOUND) {
        reason = "The certificate hasn't got a known issuer";
    } else if (status & GNUTLS_CERT_INVALID) {
        reason = "The certificate is not trusted";
    }
    merino_error(error, "Our own certificate %s failed validation against %s: %s", path, ca_path,
                 reason);
    return false;
}

bool tls_creds_check_x509(const TlsX509Files *files, bool server, GError **error)
{
    g_auto(CertList) own = { 0 };
    g_auto(CertList) authorities = { 0 };
    Role role = server ? ROLE_SERVER : ROLE_CLIENT;

    if ((files->cert && !load_own(&own, files->cert, role, error)) ||
        !load_authorities(&authorities, files->ca_cert, error)) {
        return false;
    }
    for (unsigned i = 0; i < authorities.n; i++) {
        if (!check_cert(authorities.items[i], files->ca_cert, ROLE_CA, error)) {
            return false;
        }
    }
    return !own.n || (check_cert(own.items[0], files->cert, role, error) &&
                      check_trust(&own, files->cert, &authorities, files->ca_cert, error));
}

/* SPDX-License-Identifier: MIT */
/*
 * TLS credentials as objects: what is refused, in which words, and how long they live.
 */
#include "io-harness.h"
#include "net/secret.h"
#include "net/tls-creds.h"
#include "tls-files.h"
#include "util/error.h"

static const TestCert *ca, *server, *client;
static char *folder; /* of the test that runs */

static const TestCert *make_server(TestCertInfo info)
{
    info.name = "localhost";
    info.signer = info.signer ? info.signer : ca;
    return make_cert(&info);
}

static void write_server(const TestCert *authority, const TestCert *cert)
{
    write_certs(folder, "ca-cert.pem", authority, NULL);
    write_certs(folder, "server-cert.pem", cert, NULL);
    write_key(folder, "server-key.pem", cert);
}

static TlsCredsX509Properties x509(QCryptoTLSCredsEndpoint endpoint)
{
    return (TlsCredsX509Properties){ .dir = folder, .has_endpoint = true, .endpoint = endpoint };
}

/* Make the object; what it is refused with is `expected` with the folder for each %s. */
static void check_x509(const TlsCredsX509Properties *properties, const char *expected)
{
    g_autoptr(GError) error = NULL;
    g_auto(GStrv) pieces = expected ? g_strsplit(expected, "%s", -1) : NULL;
    g_autofree char *text = expected ? g_strjoinv(folder, pieces) : NULL;
    bool ok = tls_creds_add_x509("t", properties, &error);

    g_assert_cmpstr(error ? error->message : NULL, ==, text);
    g_assert_cmpint(ok, ==, !expected);
    g_assert_cmpint(tls_creds_exists("t"), ==, ok);
    if (ok) {
        g_assert_true(tls_creds_delete("t", NULL));
    }
}

static void check_server(const char *expected)
{
    TlsCredsX509Properties properties = x509(Q_CRYPTO_TLS_CREDS_ENDPOINT_SERVER);

    check_x509(&properties, expected);
}

/* A new folder for each call. */
static void new_folder(void)
{
    g_free(folder);
    folder = make_creds_folder();
}

/* --- files --- */

static void test_missing_files(void)
{
    TlsCredsX509Properties nowhere = { 0 };

    new_folder();
    check_x509(&nowhere, "Missing 'dir' property value");
    check_server("Unable to access credentials %s/ca-cert.pem: No such file or directory");
    write_certs(folder, "ca-cert.pem", ca, NULL);
    check_server("Unable to access credentials %s/server-cert.pem: No such file or directory");
    write_certs(folder, "server-cert.pem", server, NULL);
    check_server("Unable to access credentials %s/server-key.pem: No such file or directory");
    write_key(folder, "server-key.pem", server);
    check_server(NULL);
}

static void test_garbage(void)
{
    TlsCredsX509Properties unchecked = x509(Q_CRYPTO_TLS_CREDS_ENDPOINT_SERVER);

    new_folder();
    unchecked.dir = folder;
    unchecked.has_sanity_check = true;
    write_server(ca, server);
    write_file(folder, "ca-cert.pem", "garbage\n");
    check_server("Unable to import CA certificate list %s/ca-cert.pem");
    write_server(ca, server);
    write_file(folder, "server-cert.pem", "garbage\n");
    check_server("Unable to import server certificate %s/server-cert.pem: "
                 "Base64 unexpected header error.");
    check_x509(&unchecked, "Cannot load certificate '%s/server-cert.pem' & key "
                           "'%s/server-key.pem': Base64 decoding error.");
    write_server(ca, server);
    write_key(folder, "server-key.pem", client);
    check_server("Cannot load certificate '%s/server-cert.pem' & key '%s/server-key.pem': "
                 "The certificate and the given key do not match.");
    write_server(ca, server);
    write_file(folder, "ca-crl.pem", "garbage\n");
    check_server("Cannot load CRL '%s/ca-crl.pem': Base64 decoding error.");
    write_crl(folder, ca, client);
    check_server(NULL);
    write_file(folder, "dh-params.pem", "garbage\n");
    check_server("Unable to load DH parameters from %s/dh-params.pem: "
                 "Base64 unexpected header error.");
}

/* --- sanity --- */

static void test_times(void)
{
    TlsCredsX509Properties unchecked = x509(Q_CRYPTO_TLS_CREDS_ENDPOINT_SERVER);
    const TestCert *old_ca = make_cert(&(TestCertInfo){
        .name = "old", .is_ca = true, .usage = GNUTLS_KEY_KEY_CERT_SIGN, .days = -2 });

    new_folder();
    write_server(ca, make_server((TestCertInfo){ .days = -2 }));
    check_server("The server certificate %s/server-cert.pem has expired");
    unchecked.dir = folder;
    unchecked.has_sanity_check = true;
    check_x509(&unchecked, NULL);
    write_server(ca, make_server((TestCertInfo){ .days = 2 }));
    check_server("The server certificate %s/server-cert.pem is not yet active");
    write_server(old_ca, server);
    check_server("The CA certificate %s/ca-cert.pem has expired");
}

static void test_constraints(void)
{
    const TestCert *bare = make_cert(&(TestCertInfo){ .name = "bare", .no_constraints = true });

    new_folder();
    write_server(ca, make_server((TestCertInfo){ .is_ca = true }));
    check_server("The certificate %s/server-cert.pem basic constraints show a CA, "
                 "but we need one for a server");
    write_server(client, server);
    check_server("The certificate %s/ca-cert.pem basic constraints do not show a CA");
    write_server(bare, server);
    check_server("The certificate %s/ca-cert.pem is missing basic constraints for a CA");
    write_server(ca, make_server((TestCertInfo){ .no_constraints = true }));
    check_server(NULL);
}

static void test_usage(void)
{
    const TestCert *cannot_sign = make_cert(
        &(TestCertInfo){ .name = "ca", .is_ca = true, .usage = GNUTLS_KEY_DIGITAL_SIGNATURE });

    new_folder();
    write_server(ca, make_server((TestCertInfo){ .usage = GNUTLS_KEY_KEY_ENCIPHERMENT }));
    check_server("Certificate %s/server-cert.pem usage does not permit digital signature");
    write_server(cannot_sign, server);
    check_server("Certificate %s/ca-cert.pem usage does not permit certificate signing");
    write_server(
        ca, make_server((TestCertInfo){ .purpose = GNUTLS_KP_TLS_WWW_CLIENT, .critical = true }));
    check_server("Certificate %s/server-cert.pem purpose does not allow use with a TLS server");
    write_server(ca, make_server((TestCertInfo){ .purpose = GNUTLS_KP_TLS_WWW_CLIENT }));
    check_server(NULL);
    write_server(ca, make_server((TestCertInfo){ .purpose = GNUTLS_KP_ANY, .critical = true }));
    check_server(NULL);
}

/* Who vouches for our own certificate. Those in between may stand behind it. */
static void test_trust(void)
{
    const TestCert *other = make_cert(
        &(TestCertInfo){ .name = "other", .is_ca = true, .usage = GNUTLS_KEY_KEY_CERT_SIGN });
    const TestCert *between = make_cert(&(TestCertInfo){
        .name = "between", .is_ca = true, .usage = GNUTLS_KEY_KEY_CERT_SIGN, .signer = ca });
    const TestCert *below = make_server((TestCertInfo){ .signer = between });

    new_folder();
    write_server(other, server);
    check_server("Our own certificate %s/server-cert.pem failed validation against "
                 "%s/ca-cert.pem: The certificate hasn't got a known issuer");
    write_server(ca, below);
    check_server("Our own certificate %s/server-cert.pem failed validation against "
                 "%s/ca-cert.pem: The certificate hasn't got a known issuer");
    write_certs(folder, "server-cert.pem", below, between, NULL);
    check_server(NULL);
    write_server(ca, below);
    write_certs(folder, "ca-cert.pem", between, ca, NULL);
    check_server(NULL);
}

/* A client need not have a certificate; if it has, it is looked at. */
static void test_client(void)
{
    TlsCredsX509Properties properties = x509(Q_CRYPTO_TLS_CREDS_ENDPOINT_CLIENT);

    new_folder();
    properties.dir = folder;
    write_certs(folder, "ca-cert.pem", ca, NULL);
    check_x509(&properties, NULL);
    write_certs(folder, "client-cert.pem", client, NULL);
    write_key(folder, "client-key.pem", client);
    check_x509(&properties, NULL);
    properties.has_endpoint = false;
    check_x509(&properties, NULL);
    write_certs(folder, "client-cert.pem",
                make_cert(&(TestCertInfo){ .name = "c", .signer = ca, .days = -2 }), NULL);
    check_x509(&properties, "The client certificate %s/client-cert.pem has expired");
}

/* A key with a password, which a secret holds. */
static void test_password(void)
{
    TlsCredsX509Properties properties = x509(Q_CRYPTO_TLS_CREDS_ENDPOINT_SERVER);
    const char *wrong = "Cannot load certificate '%s/server-cert.pem' & key '%s/server-key.pem': "
                        "Decryption has failed.";

    new_folder();
    properties.dir = folder;
    write_server(ca, server);
    write_key_with_password(folder, "server-key.pem", server, "s3cret");
    check_x509(&properties, wrong);
    properties.passwordid = (char *)"pw";
    check_x509(&properties, "No secret with id 'pw'");
    g_assert_true(secret_add("pw", &(SecretProperties){ .data = (char *)"s3cret" }, NULL));
    check_x509(&properties, NULL);
    g_assert_true(secret_delete("pw", NULL));
    g_assert_true(secret_add("pw", &(SecretProperties){ .data = (char *)"secret" }, NULL));
    check_x509(&properties, wrong);
    g_assert_true(secret_delete("pw", NULL));
}

static void test_priority(void)
{
    TlsCredsX509Properties properties = x509(Q_CRYPTO_TLS_CREDS_ENDPOINT_SERVER);

    new_folder();
    properties.dir = folder;
    write_server(ca, server);
    properties.priority = (char *)"NORMAL:-VERS-ALL:+VERS-TLS1.3";
    check_x509(&properties, NULL);
    properties.priority = (char *)"NORMAL:NONSENSE";
    check_x509(&properties,
               "TLS priority string 'NORMAL:NONSENSE' is not understood from 'NONSENSE' on");
}

/* --- pre-shared keys --- */

static char *psk_error(QCryptoTLSCredsEndpoint endpoint, const char *dir, const char *user)
{
    TlsCredsPskProperties properties = {
        .dir = (char *)dir, .has_endpoint = true, .endpoint = endpoint, .username = (char *)user
    };
    g_autoptr(GError) error = NULL;

    if (!tls_creds_add_psk("p", &properties, &error)) {
        return g_strdup(error->message);
    }
    g_assert_true(tls_creds_delete("p", NULL));
    return NULL;
}

static void test_psk(void)
{
    const QCryptoTLSCredsEndpoint as_server = Q_CRYPTO_TLS_CREDS_ENDPOINT_SERVER;
    const QCryptoTLSCredsEndpoint as_client = Q_CRYPTO_TLS_CREDS_ENDPOINT_CLIENT;
    g_autofree char *missing = NULL, *unknown = NULL;

    new_folder();
    missing = g_strdup_printf("Unable to access credentials %s/keys.psk: No such file or directory",
                              folder);
    unknown = g_strdup_printf("Username qem not found in PSK file %s/keys.psk", folder);
    assert_text(psk_error(as_server, NULL, NULL), "Missing 'dir' property value");
    assert_text(psk_error(as_server, folder, NULL), missing);
    assert_text(psk_error(as_client, folder, NULL), missing);
    write_file(
        folder, "keys.psk",
        "alice:000102030405060708090a0b0c0d0e0f\nqemu:d543770c15ad93d76443fb56f501a31969235f47\n");
    g_assert_null(psk_error(as_server, folder, NULL));
    g_assert_null(psk_error(as_client, folder, NULL));
    g_assert_null(psk_error(as_client, folder, "alice"));
    assert_text(psk_error(as_client, folder, "qem"), unknown);
    assert_text(psk_error(as_server, folder, "alice"),
                "username should not be set when endpoint=server");
}

/* --- users --- */

static void test_users(void)
{
    TlsCredsX509Properties properties = x509(Q_CRYPTO_TLS_CREDS_ENDPOINT_SERVER);
    g_autoptr(GError) none = NULL, side = NULL, in_use = NULL;
    TlsCreds *creds;

    new_folder();
    properties.dir = folder;
    write_server(ca, server);
    g_assert_null(tls_creds_acquire_server("s", &none));
    g_assert_cmpstr(none->message, ==, "No TLS credentials with id 's'");
    g_assert_true(tls_creds_add_x509("s", &properties, NULL));
    properties.endpoint = Q_CRYPTO_TLS_CREDS_ENDPOINT_CLIENT;
    g_assert_true(tls_creds_add_x509("c", &properties, NULL));
    g_assert_null(tls_creds_acquire_server("c", &side));
    g_assert_cmpstr(side->message, ==, "Expected TLS credentials for a server endpoint");
    creds = tls_creds_acquire_server("s", NULL);
    g_assert_nonnull(creds);
    g_assert_false(tls_creds_delete("s", &in_use));
    g_assert_cmpstr(in_use->message, ==, "object 's' is in use, can not be deleted");
    tls_creds_release(creds);
    tls_creds_release(NULL);
    g_assert_true(tls_creds_delete("s", NULL));
    g_assert_true(tls_creds_delete("c", NULL));
    g_assert_false(tls_creds_delete("c", NULL));
}

int main(int argc, char **argv)
{
    int ret;

    io_harness_init(&argc, &argv, false);
    ca = make_cert(
        &(TestCertInfo){ .name = "authority", .is_ca = true, .usage = GNUTLS_KEY_KEY_CERT_SIGN });
    server = make_server((TestCertInfo){ .usage = GNUTLS_KEY_DIGITAL_SIGNATURE,
                                         .purpose = GNUTLS_KP_TLS_WWW_SERVER });
    client = make_cert(&(TestCertInfo){ .name = "alice", .signer = ca });
    g_test_add_func("/tls-creds/missing-files", test_missing_files);
    g_test_add_func("/tls-creds/garbage", test_garbage);
    g_test_add_func("/tls-creds/times", test_times);
    g_test_add_func("/tls-creds/constraints", test_constraints);
    g_test_add_func("/tls-creds/usage", test_usage);
    g_test_add_func("/tls-creds/trust", test_trust);
    g_test_add_func("/tls-creds/client", test_client);
    g_test_add_func("/tls-creds/password", test_password);
    g_test_add_func("/tls-creds/priority", test_priority);
    g_test_add_func("/tls-creds/psk", test_psk);
    g_test_add_func("/tls-creds/users", test_users);
    ret = io_harness_run();
    g_free(folder);
    return ret;
}

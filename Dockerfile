# A static program and nothing else: no shell, no libraries, no root.
#   docker build -t portico .
#   docker run --rm portico --help
FROM rust:1-alpine AS build
# What the C and assembler parts of the cryptography are built with.
RUN apk add --no-cache gcc g++ musl-dev make cmake perl
WORKDIR /portico
COPY . .
RUN cargo build --release --locked
# What the final image cannot make for itself: a user, and folders that this user may write to.
RUN printf 'nobody:x:65532:65532:nobody:/data:/sbin/nologin\n' >/etc/passwd.portico \
 && printf 'nobody:x:65532:\n' >/etc/group.portico \
 && mkdir -p /empty/data /empty/tmp

FROM scratch
COPY --from=build /etc/passwd.portico /etc/passwd
COPY --from=build /etc/group.portico /etc/group
# For `--kubeconfig` of clusters whose certificate a public authority has signed.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build --chown=65532:65532 /empty/ /
COPY --from=build /portico/target/release/portico /portico
USER 65532:65532
WORKDIR /data
EXPOSE 6443
ENTRYPOINT ["/portico"]

# The image of a controller of the peer, which the manifests of its module run as another user than root. The Deployment names the program.
FROM scratch
ARG PROGRAM
COPY ${PROGRAM} /
USER 65532:65532

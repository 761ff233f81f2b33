package petclinic;

/** Something was asked for that is not in the records. The message is shown on the page. */
class NotFoundException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    NotFoundException(String message) {
        super(message);
    }
}

package petclinic;

import java.util.List;

/** Somebody who brings animals. The identifier is 0 as long as the owner is not stored. */
public record Owner(
        int id, String firstName, String lastName, String address, String city, String telephone, List<Pet> pets) {
    public String fullName() {
        return firstName + " " + lastName;
    }
}
